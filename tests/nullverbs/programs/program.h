/* What the programs share: they end at the first thing that is not as it must be, and connect queue pairs to themselves. */
#ifndef NULLVERBS_PROGRAM_H
#define NULLVERBS_PROGRAM_H

#include <infiniband/verbs.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                     \
    do {                                                                     \
        if (!(condition)) {                                                  \
            fprintf(stderr, "line %d: %s: %m\n", __LINE__, #condition);      \
            exit(2);                                                         \
        }                                                                    \
    } while (0)

/* From RESET to RTS, to itself; with these options of its connection, if there are some. */
static inline void connect_to_itself(struct ibv_qp *qp, struct ibv_ece *ece)
{
    int to_init = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
    int to_rtr = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
    int to_rts = IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
    struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE };

    CHECK(!ibv_modify_qp(qp, &attr, to_init));
    CHECK(!ece || !ibv_set_ece(qp, ece));
    attr = (struct ibv_qp_attr){ .qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = qp->qp_num, .max_dest_rd_atomic = 1 };
    attr.ah_attr.is_global = 1;
    attr.ah_attr.port_num = 1;
    attr.ah_attr.grh.sgid_index = 1;
    CHECK(!ibv_query_gid(qp->context, 1, 1, &attr.ah_attr.grh.dgid));
    CHECK(!ibv_modify_qp(qp, &attr, to_rtr));
    attr = (struct ibv_qp_attr){ .qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7, .max_rd_atomic = 1 };
    CHECK(!ibv_modify_qp(qp, &attr, to_rts));
}

#endif

/* Protection domains, thread domains, registrations, device memory. */
#include "null.h"

#include <stdio.h>
#include <string.h>

struct ibv_pd *ibv_alloc_pd(struct ibv_context *context)
{
    struct ibv_pd *pd;

    if (null_refuses("alloc_pd", context))
        return NULL;
    pd = calloc(1, sizeof(*pd));
    if (!pd)
        return NULL;
    pd->context = context;
    pd->handle = null_number();
    nullverbs_log("alloc_pd", context, "ok");
    return pd;
}

int ibv_dealloc_pd(struct ibv_pd *pd)
{
    nullverbs_log("dealloc_pd", pd->context, "ok");
    free(pd);
    return 0;
}

struct ibv_pd *ibv_import_pd(struct ibv_context *context, uint32_t handle)
{
    struct ibv_pd *pd = ibv_alloc_pd(context);

    if (pd)
        pd->handle = handle;
    return pd;
}

void ibv_unimport_pd(struct ibv_pd *pd)
{
    free(pd);
}

static struct ibv_pd *alloc_parent_domain(struct ibv_context *context, struct ibv_parent_domain_init_attr *attr)
{
    struct ibv_pd *pd;

    if (!attr->pd || attr->pd->context != context) {
        errno = EINVAL;
        return NULL;
    }
    if (null_refuses("alloc_parent_domain", context))
        return NULL;
    pd = calloc(1, sizeof(*pd));
    if (!pd)
        return NULL;
    pd->context = context;
    pd->handle = attr->pd->handle;
    nullverbs_log("alloc_parent_domain", context, "td=%s comp_mask=0x%x", attr->td ? "yes" : "no", attr->comp_mask);
    return pd;
}

static struct ibv_td *alloc_td(struct ibv_context *context, struct ibv_td_init_attr *attr)
{
    struct ibv_td *td;

    (void)attr;
    if (null_refuses("alloc_td", context))
        return NULL;
    td = calloc(1, sizeof(*td));
    if (td)
        td->context = context;
    nullverbs_log("alloc_td", context, "ok");
    return td;
}

static int dealloc_td(struct ibv_td *td)
{
    nullverbs_log("dealloc_td", td->context, "ok");
    free(td);
    return 0;
}

/* What was given up last: the next registration lies at its address, as it may. */
static struct ibv_mr *spare;

struct ibv_mr *nullverbs_make_mr(const char *verb, struct ibv_pd *pd, void *addr, size_t length, uint64_t iova, const char *words)
{
    struct ibv_mr *mr;

    if (null_refuses(verb, pd->context))
        return NULL;
    mr = spare ? spare : malloc(sizeof(*mr));
    spare = NULL;
    if (!mr)
        return NULL;
    memset(mr, 0, sizeof(*mr));
    mr->context = pd->context;
    mr->pd = pd;
    mr->addr = addr;
    mr->length = length;
    mr->handle = null_number();
    mr->lkey = mr->rkey = mr->handle << 8;
    nullverbs_log(verb, pd->context, "length=%zu iova=%s %s key=0x%x", length, iova == (uint64_t)(uintptr_t)addr ? "addr" : "other", words, mr->lkey);
    return mr;
}

static struct ibv_mr *registered(const char *verb, struct ibv_pd *pd, void *addr, size_t length, uint64_t iova, unsigned int access)
{
    char words[32];

    snprintf(words, sizeof(words), "access=0x%x", access);
    return nullverbs_make_mr(verb, pd, addr, length, iova, words);
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova, unsigned int access)
{
    return registered("reg_mr_iova2", pd, addr, length, iova, access);
}

/* Through its own exported symbol, as rdma-core's does: a preload sees this call. */
struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t length, int access)
{
    return ibv_reg_mr_iova2(pd, addr, length, (uintptr_t)addr, (unsigned int)access);
}

struct ibv_mr *ibv_reg_mr_iova(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova, int access)
{
    return registered("reg_mr_iova", pd, addr, length, iova, (unsigned int)access);
}

struct ibv_mr *ibv_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t length, uint64_t iova, int fd, int access)
{
    char words[64];

    snprintf(words, sizeof(words), "offset=%llu fd=%d access=0x%x", (unsigned long long)offset, fd, (unsigned int)access);
    return nullverbs_make_mr("reg_dmabuf_mr", pd, NULL, length, iova, words);
}

int ibv_rereg_mr(struct ibv_mr *mr, int flags, struct ibv_pd *pd, void *addr, size_t length, int access)
{
    if (null_refuses("rereg_mr", mr->context))
        return IBV_REREG_MR_ERR_CMD;
    if (flags & IBV_REREG_MR_CHANGE_PD)
        mr->pd = pd;
    if (flags & IBV_REREG_MR_CHANGE_TRANSLATION) {
        mr->addr = addr;
        mr->length = length;
    }
    if (!getenv("NULLVERBS_KEEPS_KEYS"))
        mr->lkey = mr->rkey = null_number() << 8;
    nullverbs_log("rereg_mr", mr->context, "flags=0x%x length=%zu access=0x%x key=0x%x", (unsigned int)flags, mr->length, (unsigned int)access, mr->lkey);
    return 0;
}

int ibv_dereg_mr(struct ibv_mr *mr)
{
    nullverbs_log("dereg_mr", mr->context, "key=0x%x", mr->lkey);
    free(mr);
    return 0;
}

struct ibv_mr *ibv_import_mr(struct ibv_pd *pd, uint32_t handle)
{
    struct ibv_mr *mr = nullverbs_make_mr("import_mr", pd, NULL, 0, 0, "access=0x0");

    if (mr)
        mr->handle = handle;
    return mr;
}

void ibv_unimport_mr(struct ibv_mr *mr)
{
    nullverbs_log("unimport_mr", mr->context, "key=0x%x", mr->lkey);
    free(spare);
    spare = mr;
}

static struct ibv_mr *alloc_null_mr(struct ibv_pd *pd)
{
    return nullverbs_make_mr("alloc_null_mr", pd, NULL, 0, 0, "access=0x0");
}

struct null_dm {
    struct ibv_dm base;
    size_t length;
};

static struct ibv_dm *alloc_dm(struct ibv_context *context, struct ibv_alloc_dm_attr *attr)
{
    struct null_dm *dm;

    if (null_refuses("alloc_dm", context))
        return NULL;
    dm = calloc(1, sizeof(*dm));
    if (!dm)
        return NULL;
    dm->base.context = context;
    dm->length = attr->length;
    nullverbs_log("alloc_dm", context, "length=%zu", attr->length);
    return &dm->base;
}

static int free_dm(struct ibv_dm *dm)
{
    nullverbs_log("free_dm", dm->context, "ok");
    free(dm);
    return 0;
}

static struct ibv_mr *reg_dm_mr(struct ibv_pd *pd, struct ibv_dm *dm, uint64_t offset, size_t length, unsigned int access)
{
    if (offset + length > ((struct null_dm *)dm)->length) {
        errno = EINVAL;
        return NULL;
    }
    return registered("reg_dm_mr", pd, NULL, length, offset, access);
}

void null_memory_ops(struct verbs_context *verbs)
{
    verbs->alloc_parent_domain = alloc_parent_domain;
    verbs->alloc_td = alloc_td;
    verbs->dealloc_td = dealloc_td;
    verbs->alloc_null_mr = alloc_null_mr;
    verbs->alloc_dm = alloc_dm;
    verbs->free_dm = free_dm;
    verbs->reg_dm_mr = reg_dm_mr;
}

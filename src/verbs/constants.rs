//! The constants of verbs.h: enumerations as newtypes, flag words as integers.

c_enum! {
    /// What a send work request asks for (`enum ibv_wr_opcode`).
    ibv_wr_opcode(u32), WR_OPCODES {
        IBV_WR_RDMA_WRITE = 0,
        IBV_WR_RDMA_WRITE_WITH_IMM = 1,
        IBV_WR_SEND = 2,
        IBV_WR_SEND_WITH_IMM = 3,
        IBV_WR_RDMA_READ = 4,
        IBV_WR_ATOMIC_CMP_AND_SWP = 5,
        IBV_WR_ATOMIC_FETCH_AND_ADD = 6,
        IBV_WR_LOCAL_INV = 7,
        IBV_WR_BIND_MW = 8,
        IBV_WR_SEND_WITH_INV = 9,
        IBV_WR_TSO = 10,
        IBV_WR_DRIVER1 = 11,
        IBV_WR_ATOMIC_WRITE = 15,
    }
}

c_enum! {
    /// What a completion is of (`enum ibv_wc_opcode`); undefined unless the status is success.
    ibv_wc_opcode(u32), WC_OPCODES {
        IBV_WC_SEND = 0,
        IBV_WC_RDMA_WRITE = 1,
        IBV_WC_RDMA_READ = 2,
        IBV_WC_COMP_SWAP = 3,
        IBV_WC_FETCH_ADD = 4,
        IBV_WC_BIND_MW = 5,
        IBV_WC_LOCAL_INV = 6,
        IBV_WC_TSO = 7,
        IBV_WC_ATOMIC_WRITE = 9,
        IBV_WC_RECV = 128,
        IBV_WC_RECV_RDMA_WITH_IMM = 129,
    }
}

c_enum! {
    /// How a work request ended (`enum ibv_wc_status`).
    ibv_wc_status(u32), WC_STATUSES {
        IBV_WC_SUCCESS = 0,
        IBV_WC_LOC_LEN_ERR = 1,
        IBV_WC_LOC_QP_OP_ERR = 2,
        IBV_WC_LOC_EEC_OP_ERR = 3,
        IBV_WC_LOC_PROT_ERR = 4,
        IBV_WC_WR_FLUSH_ERR = 5,
        IBV_WC_MW_BIND_ERR = 6,
        IBV_WC_BAD_RESP_ERR = 7,
        IBV_WC_LOC_ACCESS_ERR = 8,
        IBV_WC_REM_INV_REQ_ERR = 9,
        IBV_WC_REM_ACCESS_ERR = 10,
        IBV_WC_REM_OP_ERR = 11,
        IBV_WC_RETRY_EXC_ERR = 12,
        IBV_WC_RNR_RETRY_EXC_ERR = 13,
        IBV_WC_LOC_RDD_VIOL_ERR = 14,
        IBV_WC_REM_INV_RD_REQ_ERR = 15,
        IBV_WC_REM_ABORT_ERR = 16,
        IBV_WC_INV_EECN_ERR = 17,
        IBV_WC_INV_EEC_STATE_ERR = 18,
        IBV_WC_FATAL_ERR = 19,
        IBV_WC_RESP_TIMEOUT_ERR = 20,
        IBV_WC_GENERAL_ERR = 21,
        IBV_WC_TM_ERR = 22,
        IBV_WC_TM_RNDV_INCOMPLETE = 23,
    }
}

c_enum! {
    /// The state of a queue pair (`enum ibv_qp_state`).
    ibv_qp_state(u32), QP_STATES {
        IBV_QPS_RESET = 0,
        IBV_QPS_INIT = 1,
        IBV_QPS_RTR = 2,
        IBV_QPS_RTS = 3,
        IBV_QPS_SQD = 4,
        IBV_QPS_SQE = 5,
        IBV_QPS_ERR = 6,
        IBV_QPS_UNKNOWN = 7,
    }
}

c_enum! {
    /// The transport service of a queue pair (`enum ibv_qp_type`).
    ibv_qp_type(u32), QP_TYPES {
        IBV_QPT_RC = 2,
        IBV_QPT_UC = 3,
        IBV_QPT_UD = 4,
        IBV_QPT_RAW_PACKET = 8,
        IBV_QPT_XRC_SEND = 9,
        IBV_QPT_XRC_RECV = 10,
        IBV_QPT_DRIVER = 255,
    }
}

c_enum! {
    /// A path MTU (`enum ibv_mtu`).
    ibv_mtu(u32), MTUS {
        IBV_MTU_256 = 1,
        IBV_MTU_512 = 2,
        IBV_MTU_1024 = 3,
        IBV_MTU_2048 = 4,
        IBV_MTU_4096 = 5,
    }
}

impl ibv_mtu {
    /// The MTU in bytes, where the value is one of the five.
    #[must_use]
    pub const fn bytes(self) -> Option<u32> {
        match self.0 {
            1..=5 => Some(128 << self.0),
            _ => None,
        }
    }

    /// The value for an MTU in bytes: 256, 512, 1024, 2048 or 4096.
    #[must_use]
    pub const fn from_bytes(bytes: u32) -> Option<Self> {
        match bytes {
            256 => Some(IBV_MTU_256),
            512 => Some(IBV_MTU_512),
            1024 => Some(IBV_MTU_1024),
            2048 => Some(IBV_MTU_2048),
            4096 => Some(IBV_MTU_4096),
            _ => None,
        }
    }
}

c_enum! {
    /// The state of a port (`enum ibv_port_state`).
    ibv_port_state(u32), PORT_STATES {
        IBV_PORT_NOP = 0,
        IBV_PORT_DOWN = 1,
        IBV_PORT_INIT = 2,
        IBV_PORT_ARMED = 3,
        IBV_PORT_ACTIVE = 4,
        IBV_PORT_ACTIVE_DEFER = 5,
    }
}

c_enum! {
    /// What an asynchronous event reports (`enum ibv_event_type`).
    ibv_event_type(u32), EVENT_TYPES {
        IBV_EVENT_CQ_ERR = 0,
        IBV_EVENT_QP_FATAL = 1,
        IBV_EVENT_QP_REQ_ERR = 2,
        IBV_EVENT_QP_ACCESS_ERR = 3,
        IBV_EVENT_COMM_EST = 4,
        IBV_EVENT_SQ_DRAINED = 5,
        IBV_EVENT_PATH_MIG = 6,
        IBV_EVENT_PATH_MIG_ERR = 7,
        IBV_EVENT_DEVICE_FATAL = 8,
        IBV_EVENT_PORT_ACTIVE = 9,
        IBV_EVENT_PORT_ERR = 10,
        IBV_EVENT_LID_CHANGE = 11,
        IBV_EVENT_PKEY_CHANGE = 12,
        IBV_EVENT_SM_CHANGE = 13,
        IBV_EVENT_SRQ_ERR = 14,
        IBV_EVENT_SRQ_LIMIT_REACHED = 15,
        IBV_EVENT_QP_LAST_WQE_REACHED = 16,
        IBV_EVENT_CLIENT_REREGISTER = 17,
        IBV_EVENT_GID_CHANGE = 18,
        IBV_EVENT_WQ_FATAL = 19,
    }
}

c_enum! {
    /// The state of automatic path migration of a queue pair (`enum ibv_mig_state`).
    ibv_mig_state(u32), MIG_STATES {
        IBV_MIG_MIGRATED = 0,
        IBV_MIG_REARM = 1,
        IBV_MIG_ARMED = 2,
    }
}

c_enum! {
    /// How far the device's atomics are atomic (`enum ibv_atomic_cap`).
    ibv_atomic_cap(u32), ATOMIC_CAPS {
        IBV_ATOMIC_NONE = 0,
        IBV_ATOMIC_HCA = 1,
        IBV_ATOMIC_GLOB = 2,
    }
}

c_enum! {
    /// The kind of a device (`enum ibv_node_type`).
    ibv_node_type(i32), NODE_TYPES {
        IBV_NODE_UNKNOWN = -1,
        IBV_NODE_CA = 1,
        IBV_NODE_SWITCH = 2,
        IBV_NODE_ROUTER = 3,
        IBV_NODE_RNIC = 4,
        IBV_NODE_USNIC = 5,
        IBV_NODE_USNIC_UDP = 6,
        IBV_NODE_UNSPECIFIED = 7,
    }
}

c_enum! {
    /// The transport of a device (`enum ibv_transport_type`).
    ibv_transport_type(i32), TRANSPORT_TYPES {
        IBV_TRANSPORT_UNKNOWN = -1,
        IBV_TRANSPORT_IB = 0,
        IBV_TRANSPORT_IWARP = 1,
        IBV_TRANSPORT_USNIC = 2,
        IBV_TRANSPORT_USNIC_UDP = 3,
        IBV_TRANSPORT_UNSPECIFIED = 4,
    }
}

c_enum! {
    /// The type of a memory window (`enum ibv_mw_type`).
    ibv_mw_type(u32), MW_TYPES {
        IBV_MW_TYPE_1 = 1,
        IBV_MW_TYPE_2 = 2,
    }
}

c_enum! {
    /// The type of a shared receive queue (`enum ibv_srq_type`).
    ibv_srq_type(u32), SRQ_TYPES {
        IBV_SRQT_BASIC = 0,
        IBV_SRQT_XRC = 1,
        IBV_SRQT_TM = 2,
    }
}

c_enum! {
    /// The type of a GID (`enum ibv_gid_type`, in [`ibv_gid_entry`](crate::ibv_gid_entry)).
    ibv_gid_type(u32), GID_TYPES {
        IBV_GID_TYPE_IB = 0,
        IBV_GID_TYPE_ROCE_V1 = 1,
        IBV_GID_TYPE_ROCE_V2 = 2,
    }
}

c_flags!(u8, LINK_LAYERS {
    IBV_LINK_LAYER_UNSPECIFIED = 0,
    IBV_LINK_LAYER_INFINIBAND = 1,
    IBV_LINK_LAYER_ETHERNET = 2,
});

// `ibv_send_wr::send_flags`.
c_flags!(u32, SEND_FLAGS {
    IBV_SEND_FENCE = 1 << 0,
    IBV_SEND_SIGNALED = 1 << 1,
    IBV_SEND_SOLICITED = 1 << 2,
    IBV_SEND_INLINE = 1 << 3,
    IBV_SEND_IP_CSUM = 1 << 4,
});

// `ibv_wc::wc_flags`.
c_flags!(u32, WC_FLAGS {
    IBV_WC_GRH = 1 << 0,
    IBV_WC_WITH_IMM = 1 << 1,
    IBV_WC_IP_CSUM_OK = 1 << 2,
    IBV_WC_WITH_INV = 1 << 3,
});

// Access flags of a registration and of a queue pair.
c_flags!(u32, ACCESS_FLAGS {
    IBV_ACCESS_LOCAL_WRITE = 1 << 0,
    IBV_ACCESS_REMOTE_WRITE = 1 << 1,
    IBV_ACCESS_REMOTE_READ = 1 << 2,
    IBV_ACCESS_REMOTE_ATOMIC = 1 << 3,
    IBV_ACCESS_MW_BIND = 1 << 4,
    IBV_ACCESS_ZERO_BASED = 1 << 5,
    IBV_ACCESS_ON_DEMAND = 1 << 6,
    IBV_ACCESS_HUGETLB = 1 << 7,
    IBV_ACCESS_RELAXED_ORDERING = 1 << 20,
    IBV_ACCESS_OPTIONAL_RANGE = 0x3ff0_0000,
});

// Which fields of `ibv_qp_attr` a call sets or wants.
c_flags!(u32, QP_ATTR_MASK {
    IBV_QP_STATE = 1 << 0,
    IBV_QP_CUR_STATE = 1 << 1,
    IBV_QP_EN_SQD_ASYNC_NOTIFY = 1 << 2,
    IBV_QP_ACCESS_FLAGS = 1 << 3,
    IBV_QP_PKEY_INDEX = 1 << 4,
    IBV_QP_PORT = 1 << 5,
    IBV_QP_QKEY = 1 << 6,
    IBV_QP_AV = 1 << 7,
    IBV_QP_PATH_MTU = 1 << 8,
    IBV_QP_TIMEOUT = 1 << 9,
    IBV_QP_RETRY_CNT = 1 << 10,
    IBV_QP_RNR_RETRY = 1 << 11,
    IBV_QP_RQ_PSN = 1 << 12,
    IBV_QP_MAX_QP_RD_ATOMIC = 1 << 13,
    IBV_QP_ALT_PATH = 1 << 14,
    IBV_QP_MIN_RNR_TIMER = 1 << 15,
    IBV_QP_SQ_PSN = 1 << 16,
    IBV_QP_MAX_DEST_RD_ATOMIC = 1 << 17,
    IBV_QP_PATH_MIG_STATE = 1 << 18,
    IBV_QP_CAP = 1 << 19,
    IBV_QP_DEST_QPN = 1 << 20,
    IBV_QP_RATE_LIMIT = 1 << 25,
});

// `ibv_qp_init_attr_ex::comp_mask`.
c_flags!(u32, QP_INIT_ATTR_MASK {
    IBV_QP_INIT_ATTR_PD = 1 << 0,
    IBV_QP_INIT_ATTR_XRCD = 1 << 1,
    IBV_QP_INIT_ATTR_CREATE_FLAGS = 1 << 2,
    IBV_QP_INIT_ATTR_MAX_TSO_HEADER = 1 << 3,
    IBV_QP_INIT_ATTR_IND_TABLE = 1 << 4,
    IBV_QP_INIT_ATTR_RX_HASH = 1 << 5,
    IBV_QP_INIT_ATTR_SEND_OPS_FLAGS = 1 << 6,
});

// `ibv_qp_init_attr_ex::send_ops_flags`.
c_flags!(u64, QP_EX_SEND_OPS {
    IBV_QP_EX_WITH_RDMA_WRITE = 1 << 0,
    IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM = 1 << 1,
    IBV_QP_EX_WITH_SEND = 1 << 2,
    IBV_QP_EX_WITH_SEND_WITH_IMM = 1 << 3,
    IBV_QP_EX_WITH_RDMA_READ = 1 << 4,
    IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP = 1 << 5,
    IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD = 1 << 6,
    IBV_QP_EX_WITH_LOCAL_INV = 1 << 7,
    IBV_QP_EX_WITH_BIND_MW = 1 << 8,
    IBV_QP_EX_WITH_SEND_WITH_INV = 1 << 9,
    IBV_QP_EX_WITH_TSO = 1 << 10,
    IBV_QP_EX_WITH_ATOMIC_WRITE = 1 << 12,
});

// Which fields of `ibv_srq_attr` a call sets.
c_flags!(u32, SRQ_ATTR_MASK {
    IBV_SRQ_MAX_WR = 1 << 0,
    IBV_SRQ_LIMIT = 1 << 1,
});

// `ibv_srq_init_attr_ex::comp_mask`.
c_flags!(u32, SRQ_INIT_ATTR_MASK {
    IBV_SRQ_INIT_ATTR_TYPE = 1 << 0,
    IBV_SRQ_INIT_ATTR_PD = 1 << 1,
    IBV_SRQ_INIT_ATTR_XRCD = 1 << 2,
    IBV_SRQ_INIT_ATTR_CQ = 1 << 3,
    IBV_SRQ_INIT_ATTR_TM = 1 << 4,
});

// The second argument of `ibv_rereg_mr`.
c_flags!(u32, REREG_MR_FLAGS {
    IBV_REREG_MR_CHANGE_TRANSLATION = 1 << 0,
    IBV_REREG_MR_CHANGE_PD = 1 << 1,
    IBV_REREG_MR_CHANGE_ACCESS = 1 << 2,
});

// `ibv_cq_init_attr_ex::comp_mask` and `flags`.
c_flags!(u32, CQ_INIT_ATTR {
    IBV_CQ_INIT_ATTR_MASK_FLAGS = 1 << 0,
    IBV_CQ_INIT_ATTR_MASK_PD = 1 << 1,
    IBV_CREATE_CQ_ATTR_SINGLE_THREADED = 1 << 0,
    IBV_CREATE_CQ_ATTR_IGNORE_OVERRUN = 1 << 1,
});

// `ibv_modify_cq_attr::attr_mask`.
c_flags!(u32, CQ_ATTR_MASK {
    IBV_CQ_ATTR_MODERATE = 1 << 0,
});

// `ibv_cq_init_attr_ex::wc_flags`.
c_flags!(u64, CREATE_CQ_WC_FLAGS {
    IBV_WC_EX_WITH_BYTE_LEN = 1 << 0,
    IBV_WC_EX_WITH_IMM = 1 << 1,
    IBV_WC_EX_WITH_QP_NUM = 1 << 2,
    IBV_WC_EX_WITH_SRC_QP = 1 << 3,
    IBV_WC_EX_WITH_SLID = 1 << 4,
    IBV_WC_EX_WITH_SL = 1 << 5,
    IBV_WC_EX_WITH_DLID_PATH_BITS = 1 << 6,
    IBV_WC_EX_WITH_COMPLETION_TIMESTAMP = 1 << 7,
    IBV_WC_EX_WITH_CVLAN = 1 << 8,
    IBV_WC_EX_WITH_FLOW_TAG = 1 << 9,
    IBV_WC_EX_WITH_TM_INFO = 1 << 10,
    IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK = 1 << 11,
});

c_flags!(usize, LENGTHS {
    IBV_SYSFS_NAME_MAX = 64,
    IBV_SYSFS_PATH_MAX = 256,
});

/// Every constant of this module, for comparison with the installed header.
#[cfg(test)]
pub(crate) const ALL: &[&[(&str, i64)]] = &[
    WR_OPCODES,
    WC_OPCODES,
    WC_STATUSES,
    QP_STATES,
    QP_TYPES,
    MTUS,
    PORT_STATES,
    EVENT_TYPES,
    MIG_STATES,
    ATOMIC_CAPS,
    NODE_TYPES,
    TRANSPORT_TYPES,
    MW_TYPES,
    SRQ_TYPES,
    GID_TYPES,
    LINK_LAYERS,
    SEND_FLAGS,
    WC_FLAGS,
    ACCESS_FLAGS,
    QP_ATTR_MASK,
    QP_INIT_ATTR_MASK,
    QP_EX_SEND_OPS,
    SRQ_ATTR_MASK,
    SRQ_INIT_ATTR_MASK,
    REREG_MR_FLAGS,
    CQ_INIT_ATTR,
    CQ_ATTR_MASK,
    CREATE_CQ_WC_FLAGS,
    LENGTHS,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_value_prints_as_its_number() {
        assert_eq!(format!("{:?}", ibv_wc_status(4711)), "ibv_wc_status(4711)");
        assert_eq!(format!("{IBV_WC_RETRY_EXC_ERR:?}"), "IBV_WC_RETRY_EXC_ERR");
    }

    #[test]
    fn an_mtu_and_its_bytes_are_one_another() {
        for bytes in [256, 512, 1024, 2048, 4096] {
            assert_eq!(ibv_mtu::from_bytes(bytes).and_then(ibv_mtu::bytes), Some(bytes));
        }
        assert_eq!(ibv_mtu(6).bytes(), None);
        assert_eq!(ibv_mtu::from_bytes(1500), None);
    }
}

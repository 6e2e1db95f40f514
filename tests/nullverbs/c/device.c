/* Devices, contexts, what they say of themselves, asynchronous events, and the log. */
#define _GNU_SOURCE
#include "null.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>

#define MOST_DEVICES 16
#define GID_INDEX 1

static struct null_device devices[MOST_DEVICES];
static pthread_once_t devices_made = PTHREAD_ONCE_INIT;
static unsigned int device_count = 2;
static atomic_uint last_number;

uint32_t null_number(void)
{
    return atomic_fetch_add(&last_number, 1) + 1;
}

void nullverbs_log(const char *verb, const struct ibv_context *context, const char *words, ...)
{
    const char *path = getenv("NULLVERBS_LOG");
    char line[512];
    va_list list;
    int length, file;

    if (!path)
        return;
    length = snprintf(line, sizeof(line), "%s %s ", verb, context ? context->device->name : "-");
    va_start(list, words);
    length += vsnprintf(line + length, sizeof(line) - (size_t)length, words, list);
    va_end(list);
    if (length > (int)sizeof(line) - 2)
        length = sizeof(line) - 2;
    line[length++] = '\n';
    file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || write(file, line, (size_t)length) != length)
        abort();
    close(file);
}

bool null_refuses(const char *verb, const struct ibv_context *context)
{
    const char *list = getenv("NULLVERBS_REFUSE");
    char wanted[128];

    if (!list)
        return false;
    snprintf(wanted, sizeof(wanted), "%s:%s", verb, context->device->name);
    if (!strstr(list, wanted))
        return false;
    errno = EOPNOTSUPP;
    return true;
}

bool null_completes(void)
{
    const char *posts = getenv("NULLVERBS_POSTS");

    return posts && !strcmp(posts, "complete");
}

static void make_devices(void)
{
    const char *count = getenv("NULLVERBS_DEVICES");
    unsigned int at;

    if (count)
        device_count = (unsigned int)atoi(count);
    if (device_count > MOST_DEVICES)
        device_count = MOST_DEVICES;
    for (at = 0; at < device_count; at++) {
        struct ibv_device *base = &devices[at].base;

        devices[at].number = at;
        base->node_type = IBV_NODE_CA;
        base->transport_type = IBV_TRANSPORT_IB;
        snprintf(base->name, sizeof(base->name), "null%u", at);
        snprintf(base->dev_name, sizeof(base->dev_name), "uverbs%u", at);
        snprintf(base->dev_path, sizeof(base->dev_path), "/sys/class/infiniband_verbs/uverbs%u", at);
        snprintf(base->ibdev_path, sizeof(base->ibdev_path), "/sys/class/infiniband/null%u", at);
    }
}

static unsigned int number_of(const struct ibv_context *context)
{
    return ((const struct null_device *)context->device)->number;
}

struct ibv_device **ibv_get_device_list(int *count)
{
    struct ibv_device **list;
    unsigned int at;

    pthread_once(&devices_made, make_devices);
    list = calloc(device_count + 1, sizeof(*list));
    if (!list)
        return NULL;
    for (at = 0; at < device_count; at++)
        list[at] = &devices[at].base;
    if (count)
        *count = (int)device_count;
    return list;
}

void ibv_free_device_list(struct ibv_device **list)
{
    free(list);
}

const char *name_1_1(struct ibv_device *device)
{
    return device->name;
}

/* Stands for the functions of the oldest ABI, which take other structures. */
const char *name_1_0(struct ibv_device *device)
{
    (void)device;
    return "a device of version 1.0";
}

__asm__(".symver name_1_1, ibv_get_device_name@@IBVERBS_1.1");
__asm__(".symver name_1_0, ibv_get_device_name@IBVERBS_1.0");

__be64 ibv_get_device_guid(struct ibv_device *device)
{
    return ((struct null_device *)device)->number + 1;
}

int ibv_get_device_index(struct ibv_device *device)
{
    return (int)((struct null_device *)device)->number;
}

static int query_port_of(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attr, size_t size)
{
    struct ibv_port_attr full = {
        .state = IBV_PORT_ACTIVE,
        .max_mtu = IBV_MTU_4096,
        .active_mtu = IBV_MTU_1024,
        .gid_tbl_len = 2,
        .max_msg_sz = 1u << 31,
        .pkey_tbl_len = 1,
        .active_width = 2,
        .active_speed = 32,
        .phys_state = 5,
        .link_layer = IBV_LINK_LAYER_ETHERNET,
    };

    (void)context;
    if (port != 1)
        return EINVAL;
    memcpy(attr, &full, size < sizeof(full) ? size : sizeof(full));
    return 0;
}

static int query_device_of(struct ibv_context *context, const struct ibv_query_device_ex_input *input,
                           struct ibv_device_attr_ex *attr, size_t size)
{
    struct ibv_device_attr_ex full = { .completion_timestamp_mask = UINT64_MAX, .hca_core_clock = 1000000 };

    (void)input;
    if (size < sizeof(full.orig_attr))
        return EINVAL;
    ibv_query_device(context, &full.orig_attr);
    memcpy(attr, &full, size < sizeof(full) ? size : sizeof(full));
    return 0;
}

struct ibv_context *nullverbs_open(struct ibv_device *device, const char *verb)
{
    struct null_context *made;
    struct ibv_context *context;
    int ends[2];

    made = calloc(1, sizeof(*made));
    if (!made || pipe2(ends, O_CLOEXEC)) {
        free(made);
        return NULL;
    }
    made->async_in = ends[1];
    made->verbs.sz = sizeof(made->verbs);
    made->verbs.query_port = query_port_of;
    made->verbs.query_device_ex = query_device_of;
    null_memory_ops(&made->verbs);
    null_queue_ops(&made->verbs);
    null_pair_ops(&made->verbs);
    context = &made->verbs.context;
    context->device = device;
    context->cmd_fd = -1;
    context->async_fd = ends[0];
    context->num_comp_vectors = 1;
    context->abi_compat = __VERBS_ABI_IS_EXTENDED;
    pthread_mutex_init(&context->mutex, NULL);
    nullverbs_log(verb, context, "posts=%s", null_completes() ? "complete" : "keep");
    return context;
}

struct ibv_context *open_1_1(struct ibv_device *device)
{
    return nullverbs_open(device, "open_device");
}

struct ibv_context *open_1_0(struct ibv_device *device)
{
    return nullverbs_open(device, "open_device@1.0");
}

__asm__(".symver open_1_1, ibv_open_device@@IBVERBS_1.1");
__asm__(".symver open_1_0, ibv_open_device@IBVERBS_1.0");

struct ibv_context *ibv_import_device(int fd)
{
    (void)fd;
    pthread_once(&devices_made, make_devices);
    return nullverbs_open(&devices[0].base, "import_device");
}

int ibv_close_device(struct ibv_context *context)
{
    struct null_context *made = (struct null_context *)verbs_get_ctx(context);

    nullverbs_log("close_device", context, "ok");
    close(made->async_in);
    close(context->async_fd);
    free(made);
    return 0;
}

int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *attr)
{
    const char *vendor = getenv("NULLVERBS_VENDOR"), *stranger = getenv("NULLVERBS_STRANGER");

    if (stranger && !strcmp(stranger, context->device->name))
        vendor = NULL;
    memset(attr, 0, sizeof(*attr));
    strcpy(attr->fw_ver, "0");
    attr->node_guid = number_of(context) + 1;
    attr->sys_image_guid = attr->node_guid;
    attr->max_mr_size = UINT64_MAX;
    attr->vendor_id = vendor ? (uint32_t)strtoul(vendor, NULL, 0) : NULL_VENDOR;
    attr->max_qp = attr->max_cq = attr->max_pd = attr->max_srq = 65536;
    attr->max_mr = 1 << 20;
    attr->max_qp_wr = attr->max_srq_wr = NULL_MAX_WR;
    attr->max_cqe = 1 << 20;
    attr->max_sge = attr->max_sge_rd = attr->max_srq_sge = NULL_MAX_SGE;
    attr->max_qp_rd_atom = attr->max_qp_init_rd_atom = 16;
    attr->max_res_rd_atom = 1 << 20;
    attr->atomic_cap = IBV_ATOMIC_GLOB;
    attr->max_pkeys = 1;
    attr->phys_port_cnt = 1;
    return 0;
}

int ibv_query_port(struct ibv_context *context, uint8_t port, struct _compat_ibv_port_attr *attr)
{
    /* The exported function fills the structure of the first ABI, which ends here. */
    return query_port_of(context, port, (struct ibv_port_attr *)attr, offsetof(struct ibv_port_attr, port_cap_flags2));
}

/* RoCEv2, 127.0.0.1 and up: an address of the loopback device, so that a control connection finds its network. Or, of a host that has a number, the default subnet
 * prefix and a GUID. */
static void fill_gid(const struct ibv_context *context, struct ibv_gid_entry *entry)
{
    const char *host = getenv("NULLVERBS_HOST");
    static const uint8_t guid[] = { 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x00, 0x02, 0xc9, 0x03 };

    memset(entry, 0, sizeof(*entry));
    entry->gid.raw[15] = (uint8_t)(number_of(context) + 1);
    entry->gid_index = GID_INDEX;
    entry->port_num = 1;
    if (host) {
        memcpy(entry->gid.raw, guid, sizeof(guid));
        entry->gid.raw[14] = (uint8_t)atoi(host);
        entry->gid_type = IBV_GID_TYPE_ROCE_V1;
        return;
    }
    entry->gid.raw[10] = entry->gid.raw[11] = 0xff;
    entry->gid.raw[12] = 127;
    entry->gid_type = IBV_GID_TYPE_ROCE_V2;
    entry->ndev_ifindex = 1;
}

int _ibv_query_gid_ex(struct ibv_context *context, uint32_t port, uint32_t index, struct ibv_gid_entry *entry, uint32_t flags, size_t size)
{
    struct ibv_gid_entry full;

    if (flags || port != 1)
        return EINVAL;
    if (index != GID_INDEX)
        return ENODATA;
    fill_gid(context, &full);
    memcpy(entry, &full, size < sizeof(full) ? size : sizeof(full));
    return 0;
}

ssize_t _ibv_query_gid_table(struct ibv_context *context, struct ibv_gid_entry *entries, size_t most, uint32_t flags, size_t size)
{
    if (flags || size != sizeof(*entries))
        return -EINVAL;
    if (!most)
        return 0;
    fill_gid(context, entries);
    return 1;
}

int ibv_query_gid(struct ibv_context *context, uint8_t port, int index, union ibv_gid *gid)
{
    struct ibv_gid_entry entry;

    if (_ibv_query_gid_ex(context, port, (uint32_t)index, &entry, 0, sizeof(entry)))
        return -1;
    *gid = entry.gid;
    return 0;
}

int ibv_query_pkey(struct ibv_context *context, uint8_t port, int index, __be16 *pkey)
{
    (void)context;
    if (port != 1 || index)
        return -1;
    *pkey = 0xffff;
    return 0;
}

int ibv_get_pkey_index(struct ibv_context *context, uint8_t port, __be16 pkey)
{
    (void)context;
    return port == 1 && pkey == 0xffff ? 0 : -1;
}

void nullverbs_kill(struct ibv_context *context)
{
    atomic_store(&((struct null_device *)context->device)->dead, true);
    nullverbs_log("kill", context, "ok");
}

int nullverbs_async(struct ibv_context *context, const struct ibv_async_event *event)
{
    struct null_context *made = (struct null_context *)verbs_get_ctx(context);
    struct ibv_async_event told;

    /* What lies between the members is written too. */
    memset(&told, 0, sizeof(told));
    told.element = event->element;
    told.event_type = event->event_type;
    return write(made->async_in, &told, sizeof(told)) == sizeof(told) ? 0 : errno;
}

int ibv_get_async_event(struct ibv_context *context, struct ibv_async_event *event)
{
    return read(context->async_fd, event, sizeof(*event)) == sizeof(*event) ? 0 : -1;
}

void ibv_ack_async_event(struct ibv_async_event *event)
{
    (void)event;
}

int ibv_fork_init(void)
{
    return 0;
}

enum ibv_fork_status ibv_is_fork_initialized(void)
{
    return IBV_FORK_UNNEEDED;
}

const char *ibv_node_type_str(enum ibv_node_type type)
{
    return type == IBV_NODE_CA ? "InfiniBand channel adapter" : "unknown";
}

const char *ibv_port_state_str(enum ibv_port_state state)
{
    return state == IBV_PORT_ACTIVE ? "active" : "down";
}

const char *ibv_event_type_str(enum ibv_event_type type)
{
    return type == IBV_EVENT_PORT_ERR ? "port error" : "event";
}

const char *ibv_wc_status_str(enum ibv_wc_status status)
{
    return status == IBV_WC_SUCCESS ? "success" : status == IBV_WC_WR_FLUSH_ERR ? "Work Request Flushed Error" : "error";
}

# Run once by the guest's init, before the agent. Every fork costs milliseconds under emulation: as few as possible.
B=/bin/busybox
export PATH=/usr/sbin:/usr/bin
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
$B mkdir -p /dev/pts /dev/shm
$B mount -t devpts pts /dev/pts
$B mount -t tmpfs -o mode=1777 shm /dev/shm
$B --install -s
@INSMOD@
$B mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro shift /shift
$B mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro cache /cache

for word in $(cat /proc/cmdline); do
    case $word in
    shift.host=*) HOST=${word#*=} ;;
    shift.octet=*) OCTET=${word#*=} ;;
    esac
done
echo $HOST > /proc/sys/kernel/hostname
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
echo /tmp/core.%e.%p > /proc/sys/kernel/core_pattern

/sbin/ip -batch - <<IP
link set lo up
link set eth1 mtu 4200
link set eth2 mtu 4200
link set eth0 up
link set eth1 up
link set eth2 up
addr add 10.77.0.$OCTET/24 dev eth0
addr add 10.77.1.$OCTET/24 dev eth1
addr add 10.77.2.$OCTET/24 dev eth2
IP
rdma link add rxe0 type rxe netdev eth1
rdma link add rxe1 type rxe netdev eth2
$B chmod 666 /dev/infiniband/*

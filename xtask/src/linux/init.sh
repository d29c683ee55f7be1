#!/bin/busybox sh
# The first process of a Linux guest made by xtask: modules, network, then a shell on the console, for ever.
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /mnt /root /sbin /usr/sbin /var/run
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
export PATH=/sbin:/usr/sbin:/usr/bin:/bin HOME=/root TERM=linux
# What the kernel runs when it is told from outside to switch off or to reboot, and what busybox' own applets ask of init by signal.
for deed in poweroff reboot; do
    printf '#!/bin/sh\nsync\numount -a -r 2>/dev/null\nexec /bin/busybox %s -f\n' $deed >/sbin/$deed
    chmod 755 /sbin/$deed
done
trap /sbin/poweroff USR2
trap /sbin/reboot TERM
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run

platform=bare
[ "$(cat /sys/hypervisor/type 2>/dev/null)" = xen ] && platform=xen
for module in $(cat /etc/modules.$platform); do
    # Its parameters are on the command line, as for a kernel that loads modules by kmod: xen_blkfront.max_indirect_segments=64
    insmod /lib/modules/$module.ko $(tr ' ' '\n' </proc/cmdline | sed -n "s/^${module//_/[-_]}\.//p")
done

# The kernel takes hostname= itself since Linux 5.19, and hands it on before.
[ "$(hostname)" != "(none)" ] || hostname "${hostname:-linux}"

# A disk with a system of its own: root=/dev/… on the command line. Its network is its own matter as well.
root=$(sed -n 's/.*\broot=\([^ ]*\).*/\1/p' /proc/cmdline)
if [ -n "$root" ]; then
    for n in $(seq 50); do
        [ -e "$root" ] && break
        usleep 100000
    done
    if mount "$root" /mnt; then
        for folder in proc sys dev; do
            mount -o move /$folder /mnt/$folder
        done
        exec switch_root /mnt /sbin/init
    fi
    echo "init: cannot mount $root; here is a shell instead"
fi

ip link set lo up
# A backend may take a moment to connect its interface.
for n in 1 2 3 4 5 6 7 8 9 10; do
    [ -e /sys/class/net/eth0 ] && break
    usleep 100000
done
for path in /sys/class/net/eth*; do
    [ -e "$path" ] || continue
    interface=${path##*/}
    ip link set "$interface" up
    udhcpc -i "$interface" -s /etc/udhcpc.sh -b -S -t 5 -T 1 >/dev/null 2>&1 &
done

console=$(sed 's/.* //' /sys/class/tty/console/active)
while true; do
    setsid sh -c "exec sh -l </dev/$console >/dev/$console 2>&1" &
    wait $!
done

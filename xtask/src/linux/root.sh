#!/bin/sh
# Runs once, in the new root file system on an emulated machine: dpkg finds all packages unpacked, and configures them in its own order
# and with their own scripts; then it says what no package can know.
set -e
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true LC_ALL=C HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin
# No package starts a service here.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
# What unpacking would have run. Users come first: the scripts of the others name them.
for script in /var/lib/dpkg/info/base-passwd.preinst /var/lib/dpkg/info/*.preinst; do
    package=${script##*/}
    package=${package%.preinst}
    DPKG_MAINTSCRIPT_NAME=preinst DPKG_MAINTSCRIPT_PACKAGE=${package%:*} DPKG_MAINTSCRIPT_ARCH=amd64 "$script" install
done
dpkg --force-unsafe-io --configure --pending
unfinished=$(dpkg --audit)
[ -z "$unfinished" ] || { echo "$unfinished"; exit 1; }
rm /usr/sbin/policy-rc.d

# One terminal, the console; it is the user's own, so nobody is asked for a password.
sed -i '/getty/d' /etc/inittab
echo 'hvc:2345:respawn:/sbin/agetty --autologin root --noclear -L hvc0 115200 linux' >>/etc/inittab
echo debian >/etc/hostname
echo '127.0.0.1 localhost debian' >/etc/hosts
echo '/dev/xvda / ext4 errors=remount-ro 0 1' >/etc/fstab
printf 'auto lo eth0\niface lo inet loopback\niface eth0 inet dhcp\n' >/etc/network/interfaces
rm /root.sh

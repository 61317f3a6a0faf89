package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/drover-data/drover/api"
)

const (
	bridgeName = "switch"
	hostLink   = "eth0"
)

// freeSubnet picks a /24 that this machine neither has nor routes, so that
// whoever connects a lab with the machine gets no surprise. Docker's own
// ranges (172.16.0.0/12, 192.168.0.0/16) are left alone.
func freeSubnet() (netip.Prefix, error) {
	taken, err := takenPrefixes()
	if err != nil {
		return netip.Prefix{}, err
	}
	names, err := List()
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, name := range names {
		if rec, err := load(name); err == nil {
			if p, err := netip.ParsePrefix(rec.Subnet); err == nil {
				taken = append(taken, p)
			}
		}
	}
	if p, ok := pickSubnet(taken); ok {
		return p, nil
	}
	return netip.Prefix{}, &api.Error{Kind: api.Exhausted, Op: "choose addresses", Reason: "every network from 10.99.0.0/24 to 10.99.255.0/24 is in use on this machine", Next: "remove labs that are not needed: drover lab ls"}
}

func pickSubnet(taken []netip.Prefix) (netip.Prefix, bool) {
next:
	for i := range 256 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(i), 0}), 24)
		for _, t := range taken {
			if p.Overlaps(t) {
				continue next
			}
		}
		return p, true
	}
	return netip.Prefix{}, false
}

// takenPrefixes are the machine's routes and addresses but default routes.
func takenPrefixes() ([]netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var taken []netip.Prefix
	add := func(n *net.IPNet) {
		if n == nil {
			return
		}
		if p, err := netip.ParsePrefix(n.String()); err == nil && p.Bits() > 0 {
			taken = append(taken, p.Masked())
		}
	}
	for _, r := range routes {
		add(r.Dst)
	}
	for _, a := range addrs {
		add(a.IPNet)
	}
	return taken, nil
}

func hostAddress(subnet netip.Prefix, n int) string {
	b := subnet.Addr().As4()
	b[3] = byte(n)
	return netip.AddrFrom4(b).String()
}

// plug lays a cable from the switch to a host: a veth pair that never shows
// in the machine's own namespace and vanishes with the host's. It returns the
// prefix length as "/24".
func plug(switchPID, hostPID int, name, address, subnet string) (string, error) {
	p, err := netip.ParsePrefix(subnet)
	if err != nil {
		return "", err
	}
	h, err := switchHandle(switchPID)
	if err != nil {
		return "", err
	}
	defer h.Close()
	bridge, err := h.LinkByName(bridgeName)
	if err != nil {
		return "", fmt.Errorf("reach the switch: %w", err)
	}
	// A host keeps its hardware address over a power cycle, as real ones do:
	// otherwise its neighbours would send to the former one for a while.
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return "", err
	}
	b := ip.As4()
	cable := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: bridge.Attrs().Index, Flags: net.FlagUp},
		PeerName:  hostLink, PeerNamespace: netlink.NsPid(hostPID), PeerHardwareAddr: net.HardwareAddr{0x02, 0xd0, b[0], b[1], b[2], b[3]},
	}
	if err := h.LinkAdd(cable); err != nil {
		return "", fmt.Errorf("connect to the switch: %w", err)
	}
	link, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkSetUp(link)
	}
	if err != nil {
		return "", fmt.Errorf("connect to the switch: %w", err)
	}
	return fmt.Sprintf("/%d", p.Bits()), nil
}

func switchHandle(pid int) (*netlink.Handle, error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, fmt.Errorf("reach the switch: %w", err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, fmt.Errorf("reach the switch: %w", err)
	}
	return h, nil
}

// unplug pulls a host's cable. The kernel would do it some time after the
// host's last process ended, and answer pings until then.
func unplug(sw process, name string) error {
	if !sw.alive() {
		return nil
	}
	h, err := switchHandle(sw.PID)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
		return nil
	}
	if err == nil {
		err = h.LinkDel(link)
	}
	if err != nil {
		if _, look := h.LinkByName(name); look == nil {
			return fmt.Errorf("disconnect %s: %w", name, err)
		}
	}
	return nil // gone, by this or by the kernel meanwhile
}

// cutTable drops what comes from and goes to the addresses in its set, for the
// host as well as for its containers. Making it again changes nothing.
const cutTable = `
add table inet drover_lab
add set inet drover_lab cut { type ipv4_addr; }
add chain inet drover_lab in { type filter hook prerouting priority -400; policy accept; }
add chain inet drover_lab out { type filter hook postrouting priority 400; policy accept; }
flush chain inet drover_lab in
flush chain inet drover_lab out
add rule inet drover_lab in ip saddr @cut drop
add rule inet drover_lab out ip daddr @cut drop
`

// Partition cuts the link between hosts a and b, in both directions and for
// connections that exist as well. Repeating it changes nothing. It ends with
// Heal or when either host is powered off; then the other side stays cut
// until Heal.
func (l *Lab) Partition(ctx context.Context, a, b string) error {
	return l.link(ctx, "cut the link", a, b, func(address string) string {
		return cutTable + "add element inet drover_lab cut { " + address + " }\n"
	})
}

// Heal undoes Partition.
func (l *Lab) Heal(ctx context.Context, a, b string) error {
	return l.link(ctx, "mend the link", a, b, func(address string) string {
		return cutTable + "add element inet drover_lab cut { " + address + " }\ndelete element inet drover_lab cut { " + address + " }\n"
	})
}

// link applies rules about each host's peer in both hosts. A host that is off
// has no rules to change.
func (l *Lab) link(ctx context.Context, op, a, b string, rules func(address string) string) error {
	for _, pair := range [][2]string{{a, b}, {b, a}} {
		host, err := l.Host(pair[0])
		if err != nil {
			return err
		}
		peer, err := l.Host(pair[1])
		if err != nil {
			return err
		}
		if !host.On() {
			continue
		}
		cmd := Cmd{Args: []string{"nft", "-f", "-"}, Stdin: strings.NewReader(rules(peer.address))}
		if err := host.Run(ctx, cmd); err != nil {
			return &api.Error{Kind: api.Internal, Op: op, Object: a + "-" + b, Err: err}
		}
	}
	return nil
}

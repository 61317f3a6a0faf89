package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/drover-data/drover/api"
)

// Check is one thing to look after.
type Check struct {
	Name string
	// Judge says what the facts mean; nothing when it does not apply.
	Judge func(Facts) []api.Check
}

// Checks are all there is, in the order in which a reader wants them: what
// others depend on comes first.
func Checks() []Check {
	return []Check{
		{"kernel", kernel},
		{"tools", tools},
		{"space", space},
		{"ports", ports},
		{"docker", docker},
		{"agent", agent},
		{"plugin", plugin},
		{"state store", state},
		{"nodes", nodes},
		{"clocks", clocks},
		{"versions", versions},
		{"certificate", certificate},
		{"pools", pools},
		{"docker twins", twins},
		{"leftovers", leftovers},
	}
}

// Examine judges the facts.
func Examine(f Facts) []api.Check {
	var out []api.Check
	for _, c := range Checks() {
		for _, r := range c.Judge(f) {
			r.Name = c.Name
			out = append(out, r)
		}
	}
	return out
}

func ok(format string, args ...any) api.Check {
	return api.Check{Level: OK, Detail: fmt.Sprintf(format, args...)}
}

func warn(detail, mend string) api.Check {
	return api.Check{Level: Warning, Detail: detail, Mend: mend}
}

func bad(detail, mend string) api.Check { return api.Check{Level: Error, Detail: detail, Mend: mend} }

// orOK is the list, or one good finding when it is empty.
func orOK(list []api.Check, format string, args ...any) []api.Check {
	if len(list) == 0 {
		return []api.Check{ok(format, args...)}
	}
	return list
}

func kernel(f Facts) []api.Check {
	var out []api.Check
	if !slices.Contains(f.FileSystems, "btrfs") {
		out = append(out, bad("kernel "+f.Kernel+" has no btrfs", "modprobe btrfs; some distributions have it in a package of extra modules (linux-modules-extra). Pools of kind zfs and dir need no btrfs"))
	}
	if !f.Loop {
		out = append(out, bad("there are no loop devices (/dev/loop-control), which a pool on a file needs", "modprobe loop, or give the node a pool on a disk: drover pool add NAME --source DIRECTORY"))
	}
	return orOK(out, "%s, with btrfs and loop devices", f.Kernel)
}

func tools(f Facts) []api.Check {
	var out []api.Check
	if f.Tools["mkfs.btrfs"] == "" {
		out = append(out, bad("mkfs.btrfs is missing: a pool on a file cannot be made", "apt-get install btrfs-progs"))
	}
	for _, p := range f.Pools {
		if p.Node == f.Node && p.Kind == "zfs" && f.Tools["zfs"] == "" {
			out = append(out, bad("pool "+p.Name+" is ZFS and the zfs command is missing", "apt-get install zfsutils-linux"))
		}
	}
	return orOK(out, "mkfs.btrfs is %s", f.Tools["mkfs.btrfs"])
}

func space(f Facts) []api.Check {
	if f.DataSize == 0 {
		return nil
	}
	detail := fmt.Sprintf("%s of %s free at %s", humanize.IBytes(uint64(f.DataFree)), humanize.IBytes(uint64(f.DataSize)), f.DataDir)
	switch {
	case f.DataFree < f.DataSize/50:
		return []api.Check{bad(detail, "free space: the state store and pools on files stop writes before they run out")}
	case f.DataFree < f.DataSize/10:
		return []api.Check{warn(detail, "free space soon: pools on files cannot grow much more")}
	}
	return []api.Check{ok("%s", detail)}
}

func ports(f Facts) []api.Check {
	if f.Node != "" {
		return nil // its own agent has them; the check of nodes tells whether it is reached
	}
	var out []api.Check
	for _, p := range slices.Sorted(maps.Keys(f.PortsTaken)) {
		out = append(out, bad(fmt.Sprintf("port %d is taken: %s", p, f.PortsTaken[p]), "end what listens there (ss -tlnp shows it), or choose others with --api-port, --state-port and --peer-port"))
	}
	return orOK(out, "the ports that a node needs are free")
}

func docker(f Facts) []api.Check {
	if f.DockerErr != nil {
		return []api.Check{warn("the container engine does not answer: "+f.DockerErr.Error(), "start it (systemctl start docker), or name its socket with --docker. Volumes can be moved without it, containers cannot")}
	}
	return []api.Check{ok("%s", f.Docker)}
}

func agent(f Facts) []api.Check {
	if f.Node == "" {
		detail := "this host belongs to no cluster"
		if f.Config != nil {
			detail += ": " + f.Config.Error()
		}
		return []api.Check{warn(detail, "drover init makes a cluster, drover join TOKEN enters one")}
	}
	if f.AgentErr != nil {
		return []api.Check{bad("the agent does not answer: "+f.AgentErr.Error(), "systemctl status drover-agent; journalctl -u drover-agent says why. What is mounted stays usable meanwhile")}
	}
	return []api.Check{ok("node %s, version %s", f.Status.Node, f.Status.Version)}
}

func plugin(f Facts) []api.Check {
	if f.Node == "" {
		return nil
	}
	if f.PluginErr != nil {
		return []api.Check{bad("Docker's way to the volumes is closed: "+f.PluginErr.Error(), "restart the agent (systemctl restart drover-agent). Do not start containers meanwhile: Docker may make empty volumes of its own in place of those it does not see")}
	}
	return []api.Check{ok("the volume plugin answers")}
}

func state(f Facts) []api.Check {
	if f.Node == "" || f.AgentErr != nil {
		return nil
	}
	if f.Status.State != "healthy" {
		out := []api.Check{bad("the state store does not answer: "+f.Status.State, "bring its other members back (drover node ls shows them as far as they are known). What runs keeps running; nothing can be created or moved until then")}
		return append(out, silentMembers(f)...)
	}
	if f.External {
		return []api.Check{ok("the external etcd answers")}
	}
	voters, reached := 0, 0
	for _, n := range f.Status.Nodes {
		if n.Member != api.MemberVoter {
			continue
		}
		voters++
		if err, asked := f.State[n.Name]; asked && err == nil {
			reached++
		}
	}
	margin := reached - (voters/2 + 1)
	detail := fmt.Sprintf("healthy, %d of %d members answer", reached, voters)
	switch {
	case voters == 0:
		return []api.Check{warn("healthy, but no node is known as a member", "look again in a minute")}
	case reached < voters && margin <= 0:
		return append([]api.Check{bad(detail+": the next one that is lost stops changes in the cluster", "bring back, or drover node rm, the members that are silent")}, silentMembers(f)...)
	case reached < voters:
		return append([]api.Check{warn(detail+fmt.Sprintf(": %d more can be lost", margin), "bring back, or drover node rm, the members that are silent")}, silentMembers(f)...)
	case voters == 1 && len(f.Status.Nodes) > 2:
		return []api.Check{warn(detail+": without it nothing can be changed, and three or more nodes could share the work", "let more nodes be candidates: those that joined with --worker are not")}
	case voters == 1:
		return []api.Check{ok("%s; one member survives no loss, three nodes have three", detail)}
	}
	return []api.Check{ok("%s; %d can be lost", detail, margin)}
}

func silentMembers(f Facts) []api.Check {
	var out []api.Check
	for _, n := range slices.Sorted(maps.Keys(f.State)) {
		if err := f.State[n]; err != nil {
			out = append(out, bad("the member on "+n+" does not answer: "+err.Error(), "on "+n+": systemctl status drover-state; from here: is its port 7434 open?"))
		}
	}
	return out
}

func nodes(f Facts) []api.Check {
	var out []api.Check
	for _, name := range slices.Sorted(maps.Keys(f.Probes)) {
		if err := f.Probes[name].Err; err != nil {
			out = append(out, bad("node "+name+" does not answer this one: "+err.Error(), "is it up, and its port 7433 open from here? What is on it is unknown until then, not lost"))
		}
	}
	for _, n := range f.Status.Nodes {
		if p, asked := f.Probes[n.Name]; asked && p.Err == nil && !n.Status.Online {
			out = append(out, warn("node "+n.Name+" answers, but does not keep its lease on the state store", "on "+n.Name+": journalctl -u drover-agent; does it reach the state store's port 7434?"))
		}
	}
	if len(f.Probes) == 0 {
		return out
	}
	return orOK(out, "%d other nodes answer", len(f.Probes))
}

// Skew that is suspicious, and that is too much: a join is refused from there.
const (
	skewWarning = time.Second
	skewError   = 5 * time.Second
)

func clocks(f Facts) []api.Check {
	var out []api.Check
	asked := 0
	for _, name := range slices.Sorted(maps.Keys(f.Probes)) {
		p := f.Probes[name]
		if p.Err != nil {
			continue
		}
		asked++
		off := p.Skew.Abs() - p.Within
		detail := fmt.Sprintf("the clock of %s differs by %s", name, p.Skew.Round(10*time.Millisecond))
		mend := "synchronise the clocks (apt-get install chrony): certificates and leases go by them"
		if off >= skewError {
			out = append(out, bad(detail, mend))
		} else if off >= skewWarning {
			out = append(out, warn(detail, mend))
		}
	}
	if asked == 0 {
		return nil
	}
	return orOK(out, "those of %d other nodes agree with this one", asked)
}

func versions(f Facts) []api.Check {
	byVersion := map[string][]string{f.Status.Version: {f.Status.Node}}
	for _, name := range slices.Sorted(maps.Keys(f.Probes)) {
		if p := f.Probes[name]; p.Err == nil {
			byVersion[p.Version] = append(byVersion[p.Version], name)
		}
	}
	if len(f.Probes) == 0 || f.AgentErr != nil {
		return nil
	}
	if len(byVersion) == 1 {
		return []api.Check{ok("all nodes that answer run %s", f.Status.Version)}
	}
	var parts []string
	for _, v := range slices.Sorted(maps.Keys(byVersion)) {
		parts = append(parts, v+" on "+strings.Join(byVersion[v], ", "))
	}
	return []api.Check{warn("nodes run different versions: "+strings.Join(parts, "; "), "fine during an upgrade; finish it")}
}

func certificate(f Facts) []api.Check {
	if f.Node == "" {
		return nil
	}
	c := f.Cert
	if c.Err != nil {
		return []api.Check{warn("this node's certificate cannot be read: "+c.Err.Error(), "run drover doctor as root")}
	}
	left, life := c.Expiry.Sub(f.Now), c.Expiry.Sub(c.NotBefore)
	text := fmt.Sprintf("good until %s (%d days)", c.Expiry.UTC().Format(time.DateTime), int(left.Hours()/24))
	switch {
	case left <= 0:
		return []api.Check{bad("this node's certificate ended "+c.Expiry.UTC().Format(time.DateTime)+" UTC", "drover node rm it on another node, and let it join again with a new token; its data stays")}
	case left < life/6:
		return []api.Check{bad(text+"; it should have been renewed long ago", "journalctl -u drover-agent says why renewing fails: a control node has to be reached")}
	case left < life/3-life/30:
		return []api.Check{warn(text+"; its renewal is late", "drover events shows certificate.not-renewed with the cause")}
	}
	return []api.Check{ok("%s", text)}
}

func pools(f Facts) []api.Check {
	if f.Node == "" || f.AgentErr != nil {
		return nil
	}
	var out []api.Check
	mine := 0
	for _, p := range f.Pools {
		if p.Node == f.Node {
			mine++
		}
		name := p.Name + " on " + p.Node
		if p.Reason != "" {
			name += " (" + p.Reason + ")"
		}
		if p.Held != "" && p.State != api.PoolFull {
			out = append(out, warn("pool "+name+" should grow and cannot: "+p.Held, growMend))
		}
		switch p.State {
		case api.PoolGone:
			out = append(out, bad("pool "+name+" is gone", "attach its disk or mount its file system again; its volumes wait, nothing is made in their place"))
		case api.PoolReadOnly:
			out = append(out, bad("pool "+name+" is read-only", "dmesg shows why the kernel stopped writes; move what is needed away before repairing"))
		case api.PoolFull:
			mend := "remove volumes or snapshots, move volumes away, or free space below the pool"
			if p.Held != "" {
				name, mend = name+" and cannot grow ("+p.Held+")", growMend
			}
			out = append(out, bad("pool "+name+" is full", mend))
		case api.PoolReady:
			if p.Capacity > 0 && p.Free < p.Capacity/10 && p.Room == 0 && p.Held == "" {
				out = append(out, warn(fmt.Sprintf("pool %s has %s free", name, humanize.IBytes(uint64(max(p.Free, 0)))), "move volumes away, or give the node another pool"))
			}
		}
	}
	if mine == 0 {
		out = append(out, warn("this node has no pool", "drover pool add default"))
	}
	return orOK(out, "%d pools are ready", len(f.Pools))
}

// growMend is what helps a pool that has to grow and cannot.
const growMend = "free space on its host, or allow it part of what the host keeps: drover pool grow NAME SIZE; or remove or move volumes"

func twins(f Facts) []api.Check {
	if f.DockerErr != nil || f.Node == "" {
		return nil
	}
	if f.TwinErr != nil {
		return []api.Check{warn("whether Docker made volumes of its own with names of the cluster is unknown: "+f.TwinErr.Error(), "look again when agent and Docker answer, as root")}
	}
	var out []api.Check
	for _, t := range f.Twins {
		where := "Docker has a volume of its own named " + t.Name + " (" + t.Dir + ")"
		switch {
		case t.Err != nil:
			out = append(out, warn(where+", which cannot be looked into: "+t.Err.Error(), "run drover doctor as root"))
		case len(t.UsedBy) > 0:
			out = append(out, bad(where+", and "+strings.Join(t.UsedBy, ", ")+" uses it in place of the cluster's", "stop and remove the container, look at what it wrote there, then drover doctor --fix if it is empty, and make the container anew"))
		case !t.Empty:
			out = append(out, bad(where+", with files in it", "look at them; what is needed can be copied into the cluster's volume. Then docker volume rm "+t.Name))
		default:
			out = append(out, warn(where+"; it is empty and unused", "drover doctor --fix removes it"))
		}
	}
	return orOK(out, "Docker has no volume of its own with a name of the cluster")
}

func leftovers(f Facts) []api.Check {
	if f.LeftErr != nil {
		return []api.Check{warn("what was left behind cannot be told: "+f.LeftErr.Error(), "run drover doctor as root, with the agent running")}
	}
	var out []api.Check
	for _, l := range f.Left {
		out = append(out, warn(l.What, l.Mend))
	}
	return orOK(out, "nothing was left behind")
}

package api

import "time"

// Cluster is the hosts that share one state store.
type Cluster struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	Incarnation uint64    `json:"incarnation" doc:"grows when the state is recovered from a backup"`
	Created     time.Time `json:"created"`
	Format      int       `json:"format" doc:"version of the records in the state store"`
	// Recovery is set while the cluster comes back from a backup: until it is
	// over nothing new is mounted, moved or removed; what runs keeps running.
	Recovery *ClusterRecovery `json:"recovery,omitempty"`
}

// ClusterRecovery is how far the recovery of a cluster's state has come.
type ClusterRecovery struct {
	Backup  time.Time `json:"backup" doc:"when the backup was taken"`
	Started time.Time `json:"started"`
	// Restoring: the backup's records are still being written.
	Restoring bool `json:"restoring,omitempty"`
	// Awaiting names the nodes that have not reported what their pools hold,
	// with what exactly is awaited of each.
	Awaiting map[string]string `json:"awaiting,omitempty"`
}

// Node is a host that runs the agent.
type Node struct {
	Name    string            `json:"name"`
	Address string            `json:"address" doc:"host:port where its agent serves the API and transfers, mutual TLS only"`
	Labels  map[string]string `json:"labels,omitempty"`
	Joined  time.Time         `json:"joined"`
	// Control nodes may change the whole state store: those that run a member
	// of it, or, with an external one, those that were given that role.
	Control bool `json:"control"`
	// Candidate nodes may be given a part in the embedded state store when it
	// needs one more; with that they become control nodes.
	Candidate bool   `json:"candidate"`
	Member    Member `json:"member" doc:"its part in the embedded state store"`
	StateURL  string `json:"stateURL,omitempty" doc:"where clients of the state store would reach its member"`
	PeerURL   string `json:"peerURL,omitempty" doc:"where other members would reach its member"`
	Draining  bool   `json:"draining,omitempty" doc:"nothing new is placed here"`
	Key       string `json:"key" doc:"SHA-256 of the public key of its certificate, hexadecimal"`
	// Incarnation is the last one of the cluster in which the node has reported
	// what its pools hold. What a node with an older one holds is unknown.
	Incarnation uint64 `json:"incarnation,omitempty"`
	Version     int64  `json:"version"`
	// Status is the node's own word, as last heard.
	Status NodeStatus `json:"status"`
}

// Member is a node's part in the embedded state store.
type Member string

// The parts.
const (
	MemberNone    Member = "none"
	MemberLearner Member = "learner"
	MemberVoter   Member = "voter"
)

// NodeStatus is what a node says of itself with each renewal of its lease.
type NodeStatus struct {
	Online   bool      `json:"online" doc:"its lease is held; false is unknown, not dead"`
	Seen     time.Time `json:"seen,omitzero" doc:"when it was last heard"`
	Software string    `json:"software,omitempty" doc:"version of the binary"`
	API      int       `json:"api,omitempty" doc:"newest version of API and transfer protocol it speaks"`
	Oldest   int       `json:"oldestAPI,omitempty" doc:"oldest version that it still speaks; 0: only the newest"`
	Boot     string    `json:"boot,omitempty" doc:"boot id of the kernel"`
	Pools    []Pool    `json:"pools,omitempty"`
}

// Pool is where a node keeps data.
type Pool struct {
	Name     string    `json:"name"`
	Node     string    `json:"node"`
	Kind     string    `json:"kind" doc:"btrfs, zfs, dir, csi or memory"`
	Source   string    `json:"source" doc:"what it lies on: a directory, a pool's name, a file"`
	State    PoolState `json:"state"`
	Reason   string    `json:"reason,omitempty" doc:"why the state is not ready"`
	Capacity int64     `json:"capacity" doc:"bytes"`
	Used     int64     `json:"used" doc:"bytes"`
	Free     int64     `json:"free" doc:"bytes that can still be promised"`
	// Sizes says how volume sizes are kept: "hard" (writes fail at the limit),
	// or "soft" (measured and reported).
	Sizes    string   `json:"sizes"`
	Snapshot string   `json:"snapshot" doc:"\"atomic\": any time; \"paused\": users are paused while it is made"`
	Cannot   []string `json:"cannot,omitempty" doc:"what files can have that this pool does not keep"`
	// A pool on a file grows by itself with its host's space.
	Grows bool   `json:"grows,omitempty" doc:"the pool grows by itself when it fills up"`
	Room  int64  `json:"room,omitempty" doc:"bytes it can still grow by"`
	Held  string `json:"held,omitempty" doc:"why it does not grow although it should"`
}

// PoolState is a pool's fitness.
type PoolState string

// The states.
const (
	PoolReady    PoolState = "ready"
	PoolFull     PoolState = "full" // at or above its watermark: no new data
	PoolReadOnly PoolState = "read-only"
	PoolGone     PoolState = "gone" // not there: its device, file or mount is missing
)

// Event is something that happened, for people and tools that watch.
type Event struct {
	ID      string            `json:"id" doc:"grows on one node: its boot count and a number"`
	Time    time.Time         `json:"time"`
	Node    string            `json:"node"`
	Type    string            `json:"type" doc:"noun.verb, as in volume.moved"`
	Object  string            `json:"object" doc:"what it happened to"`
	Level   string            `json:"level" doc:"info, warning or error"`
	Message string            `json:"message"`
	Trace   string            `json:"trace,omitempty" doc:"W3C trace id of the request behind it"`
	Data    map[string]string `json:"data,omitempty"`
}

// User of the API, known by the name in a client certificate.
type User struct {
	Name    string    `json:"name"`
	Role    Role      `json:"role"`
	Created time.Time `json:"created"`
	Key     string    `json:"key,omitempty" doc:"SHA-256 of the public key of the certificate, hexadecimal"`
}

// Role is what a user may do.
type Role string

// The roles; each includes the ones before it.
const (
	Viewer   Role = "viewer"   // look at everything but secrets
	Operator Role = "operator" // change volumes
	Admin    Role = "admin"    // change nodes, users, tokens
)

package lint

// This file is the import law of docs/ARCHITECTURE.md. A rule names packages
// by path below the module, "storage/..." with all below it, and says what
// they may not import, or who alone may import them. Tests are free: they put
// together what they like.

// rule forbids the packages Of everything in Not and whatever is outside Only.
type rule struct {
	of   []string
	not  []string // import paths; "..." at the end takes in what is below
	only []string // when set, everything else of Drover's own is forbidden
	std  bool     // nothing but the standard library (and Only)
	why  string
}

// door says who alone may import a package.
type door struct {
	pkg string
	by  []string
	why string
}

// impure is what a package that decides in values has no business with.
var impure = []string{"os...", "net...", "context", "log...", "math/rand...", "crypto/rand", "sync...", "syscall", "golang.org/x/sys..."}

var rules = []rule{
	{
		of: []string{"api"}, std: true,
		why: "everything imports api; it describes and does nothing",
	},
	{
		of: []string{"plan", "repo", "network/ipam"}, not: impure,
		why: "what decides takes time and randomness as arguments, so that it can be replayed, printed and property-tested",
	},
	{
		of: []string{"plan"}, only: []string{"api", "repo"},
		why: "the planner sees resources, not the machinery that observes or acts",
	},
	{
		of: []string{"repo"}, only: []string{"api"},
		why: "which base a transfer takes does not depend on how stores work",
	},
	{
		of: []string{"trace"}, std: true,
		why: "everything that asks or answers imports it",
	},
	{
		of: []string{"state", "storage", "events", "container"}, only: []string{"api"},
		why: "a contract knows the nouns, and none of its implementations or users",
	},
	{
		of: []string{"storage/btrfs...", "storage/zfs...", "storage/dir...", "storage/memory", "storage/faulty", "storage/loopfile"}, only: []string{"api", "storage...", "tree", "internal/durable"},
		why: "a backend keeps bytes; it knows neither cluster nor containers",
	},
	{
		of: []string{"storage/hostfs"}, only: []string{"api", "storage"},
		why: "what backends share knows none of them",
	},
	{
		of: []string{"storage/btrfs..."}, not: []string{"drover/storage/zfs...", "drover/storage/dir..."},
		why: "backends do not know each other: what they share is the contract and the portable stream",
	},
	{
		of: []string{"storage/zfs..."}, not: []string{"drover/storage/btrfs...", "drover/storage/dir..."},
		why: "backends do not know each other: what they share is the contract and the portable stream",
	},
	{
		of: []string{"storage/dir..."}, not: []string{"drover/storage/btrfs...", "drover/storage/zfs..."},
		why: "backends do not know each other: what they share is the contract and the portable stream",
	},
	{
		of: []string{"tree..."}, only: []string{"api", "storage", "tree..."},
		why: "the portable format is the same whatever store it comes from",
	},
	{
		of: []string{"transfer"}, only: []string{"api", "repo", "storage"},
		why: "a session brings a snapshot and does not know why",
	},
	{
		of: []string{"remote..."}, only: []string{"api", "remote..."},
		why: "where bytes are kept does not depend on what they mean",
	},
	{
		of: []string{"exchange"}, only: []string{"api", "remote", "repo", "storage", "tree..."},
		why: "commits go between a pool and a remote; whose they are and who asked is the agent's affair",
	},
	{
		of: []string{"hub"}, not: []string{"net/http", "database/sql", "github.com/distribution..."}, only: []string{"api", "remote"},
		why: "the words of the hub; its rooms meet there",
	},
	{
		of: []string{"hub/store"}, not: []string{"net/http", "github.com/distribution..."}, only: []string{"api", "hub", "remote", "internal/durable"},
		why: "rules that hold in a transaction know neither HTTP nor where bytes are kept",
	},
	{
		of: []string{"hub/engine"}, not: []string{"database/sql"}, only: []string{"api", "hub", "internal/durable"},
		why: "bytes are kept without knowing whose they are",
	},
	{
		of: []string{"hub/registry"}, not: []string{"database/sql", "github.com/distribution..."}, only: []string{"api", "hub", "hub/engine", "hub/store", "remote"},
		why: "the face of a registry asks the database and the engine, and is neither",
	},
	{
		of: []string{"hub/collect"}, not: []string{"net/http", "database/sql", "github.com/distribution..."}, only: []string{"api", "hub", "hub/engine", "hub/store", "repo"},
		why: "what goes is decided by rows and rules, whoever asks for it",
	},
	{
		of: []string{"hub/serve"}, not: []string{"database/sql", "github.com/distribution..."}, only: []string{"api", "hub..."},
		why: "it puts rooms together and decides nothing",
	},
	{
		of: []string{"hub/manage"}, not: []string{"database/sql", "github.com/distribution..."}, only: []string{"api", "hub", "hub/store", "hub/webhook", "internal/apierror"},
		why: "people are told and asked over REST; what may change is the database's to say",
	},
	{
		of: []string{"hub/manage/client"}, not: []string{"database/sql", "github.com/distribution..."}, only: []string{"api", "api/client", "hub", "trace"},
		why: "a client knows the words and not who serves them",
	},
	{
		of: []string{"hub/webhook"}, not: []string{"database/sql", "github.com/distribution..."}, only: []string{"api", "hub"},
		why: "letters are sent without knowing where they are kept",
	},
	{
		of: []string{"users"}, only: []string{"api", "storage"},
		why: "who uses a head is the kernel's word, not the cluster's",
	},
	{
		of: []string{"ledger"}, only: []string{"api", "repo", "state"},
		why: "records change without looking at storage or containers",
	},
	{
		of: []string{"auth"}, only: []string{"api", "internal/durable"},
		why: "who somebody is does not depend on what is asked",
	},
	{
		of: []string{"cluster"}, not: []string{"net/http", "go.etcd.io..."}, only: []string{"api", "auth", "state", "internal/durable"},
		why: "membership is decided on records; routes and etcd are edges",
	},
	{
		of: []string{"backup"}, only: []string{"api"},
		why: "a backup's file can be read and checked without a cluster",
	},
	{
		of: []string{"recovery"}, not: []string{"net/http", "go.etcd.io..."}, only: []string{"api", "auth", "backup", "cluster", "ledger", "state"},
		why: "a cluster comes back by its records and what nodes report; pools, routes and etcd are edges",
	},
	{
		of: []string{"agent"}, not: []string{"net/http", "go.etcd.io/etcd...", "github.com/moby/moby..."},
		why: "the agent works through ports: it can be run in memory, a thousand in one process",
	},
	{
		of: []string{"doctor", "metrics"}, not: []string{"drover/agent", "drover/apiserver", "drover/node", "drover/state/etcd"},
		why: "they look at what they are given, so that they can be tested without a host",
	},
	{
		of: []string{"plugin/docker"}, only: []string{"api"},
		why: "Docker's protocol is an edge; how volumes are kept is not its affair",
	},
	{
		of: []string{"lab"}, only: []string{"api"},
		why: "the lab makes hosts, and tests and tries Drover as a stranger would: by its binary",
	},
}

var doors = []door{
	{"cmd...", nil, "a command is an end, not a part"},
	{"internal/bench", nil, "a command is an end, not a part"},
	{"internal/suite", nil, "a command is an end, not a part"},
	{"internal/powerloss", nil, "a disk that forgets: for tests"},
	{"node", []string{"cmd...", "internal/..."}, "node wires one host; whoever imports it gets all adapters"},
	{"agent", []string{"node", "internal/..."}, "others ask the agent through apiserver's and the plugin's ports"},
	{"apiserver", []string{"node", "cmd...", "internal/..."}, "the server is an edge; the client is api/client"},
	{"plugin/...", []string{"node", "cmd...", "lab"}, "plugins are edges"},
	{"lab", []string{"cmd...", "internal/...", "demo"}, "the product does not depend on the place where it is tried out"},
	{"state/etcd", []string{"node", "cmd...", "lab", "internal/..."}, "only who wires a host says what keeps its state"},
	{"storage/btrfs", []string{"node", "cmd...", "lab", "internal/..."}, "only who wires a host chooses its backends"},
	{"storage/zfs", []string{"node", "cmd...", "lab", "internal/..."}, "only who wires a host chooses its backends"},
	{"storage/dir", []string{"node", "cmd...", "lab", "internal/..."}, "only who wires a host chooses its backends"},
	{"storage/hostfs", []string{"storage/..."}, "it is what backends are made of; others ask storage.Backend"},
	{"storage/memory", []string{"internal/..."}, "it keeps nothing: for tests and simulations"},
	{"storage/faulty", []string{"internal/..."}, "it breaks things on purpose: for tests and simulations"},
	{"storage/storagetest", nil, "a suite for tests"},
	{"state/statetest", nil, "a suite for tests"},
	{"hub/serve", []string{"hub/front", "cmd...", "internal/..."}, "who wires a hub gets all its adapters"},
	{"hub/engine", []string{"hub...", "cmd...", "internal/..."}, "only the hub has an engine"},
	{"hub/front", []string{"cmd...", "internal/..."}, "whoever imports it gets a whole hub"},
	{"hub/manage", []string{"hub/front", "cmd...", "internal/..."}, "the server is an edge; the client is hub/manage/client"},
	{"hub/store", []string{"hub...", "cmd...", "internal/..."}, "only the hub has its database"},
	{"internal/postgres", nil, "a server for tests"},
	{"internal/hubserver", nil, "a server for tests"},
	{"remote/layout", []string{"remote/open", "hub", "cmd...", "lab", "internal/..."}, "only who wires a host chooses how a remote is reached"},
	{"remote/s3", []string{"remote/open", "hub", "cmd...", "lab", "internal/..."}, "only who wires a host chooses how a remote is reached"},
	{"remote/registry", []string{"remote/open", "hub", "cmd...", "lab", "internal/..."}, "only who wires a host chooses how a remote is reached"},
	{"remote/open", []string{"node", "hub", "cmd...", "lab", "internal/..."}, "whoever imports it gets all adapters"},
	{"remote/remotetest", nil, "a suite for tests"},
	{"container/docker", []string{"node", "cmd...", "lab", "internal/..."}, "only who wires a host chooses its engine"},
	{"container/memory", []string{"internal/..."}, "it runs nothing: for tests and simulations"},
}

// confined says which packages alone may use a module, so that it can be
// replaced by touching one room.
var confined = []door{
	{"go.etcd.io/etcd...", []string{"state/etcd", "internal/..."}, "the state store is a port; state/etcd is its one adapter"},
	{"go.etcd.io/bbolt...", []string{"agent", "exchange", "tree", "internal/..."}, "small durable records in one file: the agent's index, and what lies beside the data"},
	{"google.golang.org/grpc...", []string{"state/etcd"}, "etcd's transport"},
	{"github.com/moby/moby...", []string{"container/docker", "doctor", "internal/..."}, "the engine is a port; container/docker is its one adapter"},
	{"filippo.io/age...", []string{"backup", "exchange"}, "secrets are wrapped for people in two places: a backup, and a remote's key"},
	{"github.com/spf13/...", []string{"cmd..."}, "flags are parsed in cmd only"},
	{"github.com/minio/...", []string{"remote/s3"}, "buckets are a port; remote/s3 is its one adapter"},
	{"oras.land/...", []string{"remote/registry"}, "registries are a port; remote/registry is its one adapter"},
	{"github.com/distribution/...", []string{"hub...", "internal/..."}, "the engine of the hub, and the foreign registry of tests"},
	{"modernc.org/...", []string{"hub/store"}, "the hub's database is used in one room"},
	{"github.com/danielgtaylor/huma...", []string{"apiserver", "hub/manage", "internal/apierror"}, "routes and their description are made in one place"},
	{"github.com/prometheus/...", []string{"metrics", "hub/front", "internal/..."}, "measures are named in one place"},
	{"github.com/vishvananda/...", []string{"lab", "network/...", "internal/..."}, "links and namespaces"},
	{"github.com/hanwen/go-fuse/v2...", []string{"internal/powerloss"}, "a file system of the tests' own"},
	{"github.com/dustin/go-humanize", []string{"cmd...", "agent", "storage/...", "doctor", "internal/..."}, "sizes are put into words where people read them"},
	{"pgregory.net/rapid", []string{"storage/storagetest", "state/statetest", "tree/treetest", "remote/remotetest", "internal/..."}, "for tests"},
	{"os/exec", []string{
		"cmd...", "lab", "internal/...", "storage/...", "demo", "doctor",
	}, "a backend may call its file system's tools; nobody else starts programs"},
}

// Package recovery takes backups of a cluster's state and brings a cluster
// back from one: it writes the records into a new state store, gathers what
// the nodes' pools hold, and has package ledger decide what holds. It knows
// neither pools nor etcd, and makes no decision about a volume itself.
package recovery

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/backup"
	"github.com/drover-data/drover/state"
)

// passing are the parts of the state store that no backup has: what is bound
// to a lease, what is derived from other records, permissions to join (a used
// one would be good again), and another recovery's reports.
var passing = []string{state.Alive.Prefix(), state.Leaders, state.Assigned.Prefix(), state.Tokens.Prefix(), state.Reports.Prefix()}

// Take reads everything that Drover keeps in the state store, at one revision,
// and gives it as the text of a file, which it has read back and compared.
func Take(ctx context.Context, store *state.Store, node, software string, seal backup.Seal, now time.Time) ([]byte, backup.Header, error) {
	h := backup.Header{Software: software, Taken: now.UTC(), Node: node}
	var records []backup.Record
	secrets := map[string][]byte{}
	var err error
	h.Revision, err = store.KV().List(ctx, state.Root, 0, func(it state.Item) error {
		for _, p := range passing {
			if strings.HasPrefix(it.Key, p) {
				return nil
			}
		}
		if strings.HasPrefix(it.Key, state.Secrets.Prefix()) {
			secrets[it.Key] = it.Value
			return nil
		}
		if it.Key == state.TheCluster.Key("cluster") {
			if err := json.Unmarshal(it.Value, &h.Cluster); err != nil {
				return err
			}
		}
		records = append(records, backup.Record{Key: it.Key, Value: it.Value})
		return nil
	})
	if err != nil {
		return nil, h, err
	}
	const op = "back up the cluster's state"
	if h.Cluster.ID == "" {
		return nil, h, &api.Error{Kind: api.Unavailable, Op: op, Reason: "the state store does not hold a cluster yet", Next: "try again when drover status shows it healthy"}
	}
	if h.Cluster.Recovery != nil {
		return nil, h, &api.Error{Kind: api.Unavailable, Op: op, Object: h.Cluster.Name, Reason: "it is being recovered, and not all of it is known yet", Next: "wait until drover status shows that the recovery is over; keep the backup that it came from"}
	}
	file, err := backup.Encode(h, records, secrets, seal)
	if err != nil {
		return nil, h, err
	}
	read, err := backup.Decode(file)
	if err != nil {
		return nil, h, err
	}
	return file, read.Header, nil
}

// Contents are a backup's records by what they are.
type Contents struct {
	Cluster api.Cluster
	Nodes   map[string]api.Node
	Volumes map[string]api.Volume
	Rest    []backup.Record // users, issued keys, revocations
}

// Read sorts a backup's records.
func Read(b backup.Backup) (Contents, error) {
	c := Contents{Nodes: map[string]api.Node{}, Volumes: map[string]api.Volume{}}
	for _, r := range b.Records {
		var err error
		switch table, id := split(r.Key); table {
		case state.TheCluster.Prefix():
			err = json.Unmarshal(r.Value, &c.Cluster)
		case state.Nodes.Prefix():
			var n api.Node
			if err = json.Unmarshal(r.Value, &n); err == nil {
				c.Nodes[id] = n
			}
		case state.Volumes.Prefix():
			var v api.Volume
			if err = json.Unmarshal(r.Value, &v); err == nil {
				c.Volumes[id] = v
			}
		case state.Names.Prefix(): // they follow from the volumes
		case state.Users.Prefix(), state.Issued.Prefix(), state.Revoked.Prefix():
			c.Rest = append(c.Rest, r)
		default:
			err = &api.Error{Kind: api.Unsupported, Op: "read backup", Object: r.Key, Reason: "this version does not know that record", Next: "use the version of Drover that wrote the backup (" + b.Header.Software + "), or a later one"}
		}
		if err != nil {
			return c, &api.Error{Kind: api.KindOf(err), Op: "read backup", Object: r.Key, Err: err}
		}
	}
	if c.Cluster.ID == "" || c.Cluster.ID != b.Header.Cluster.ID {
		return c, &api.Error{Kind: api.Damaged, Op: "read backup", Reason: "it has no record of the cluster that it names"}
	}
	return c, nil
}

// split gives the table's prefix of a key, and the rest.
func split(key string) (prefix, id string) {
	table, id, _ := strings.Cut(strings.TrimPrefix(key, state.Root), "/")
	return state.Root + table + "/", id
}

// CA is the CA among a backup's secrets.
func CA(secrets map[string][]byte) ([]byte, error) {
	var secret []byte
	text, ok := secrets[state.Secrets.Key("ca")]
	if !ok || json.Unmarshal(text, &secret) != nil {
		return nil, &api.Error{Kind: api.Damaged, Op: "read backup", Reason: "its secrets have no CA"}
	}
	return secret, nil
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/exchange"
	"github.com/drover-data/drover/internal/durable"
	"github.com/drover-data/drover/peer"
)

// keyring is where this node keeps the keys of remotes: files for root alone,
// named by the ids that follow from the keys.
type keyring struct{ dir string }

var keyID = regexp.MustCompile(`^[0-9a-f]{16}$`)

func (k keyring) path(id string) string { return filepath.Join(k.dir, id) }

// read gives a key; NotFound when it is not here, Damaged when its file does not hold it.
func (k keyring) read(id string) ([]byte, error) {
	const op = "use key"
	if !keyID.MatchString(id) {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Object: id, Reason: "not the id of a key", Next: "drover remote key ls shows the ids"}
	}
	secret, err := os.ReadFile(k.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &api.Error{Kind: api.NotFound, Op: op, Object: id, Reason: "this node does not have it"}
	}
	if err != nil {
		return nil, &api.Error{Kind: api.Unavailable, Op: op, Object: id, Err: err}
	}
	reason := ""
	if len(secret) != exchange.KeySize {
		reason = fmt.Sprintf("its file %s has %d bytes, a key has %d", k.path(id), len(secret), exchange.KeySize)
	} else if key, err := exchange.NewKey(secret); err != nil || key.ID() != id {
		reason = "its file " + k.path(id) + " holds something else"
	}
	if reason != "" {
		return nil, &api.Error{Kind: api.Damaged, Op: op, Object: id, Reason: reason, Next: "drover remote key unlock puts it there anew"}
	}
	return secret, nil
}

// keep writes a key durably and gives its id.
func (k keyring) keep(secret []byte) (string, error) {
	const op = "keep key"
	key, err := exchange.NewKey(secret)
	if err != nil {
		return "", err
	}
	err = durable.MkdirAll(k.dir, 0o700)
	if err == nil {
		err = durable.WriteFile(k.path(key.ID()), secret, 0o600)
	}
	if err != nil {
		return "", &api.Error{Kind: api.Unavailable, Op: op, Object: key.ID(), Err: err}
	}
	return key.ID(), nil
}

func (k keyring) remove(id string) error {
	if !keyID.MatchString(id) {
		return nil
	}
	err := os.Remove(k.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = durable.SyncDir(k.dir)
	}
	return err
}

func (a *Agent) keys() keyring { return keyring{filepath.Join(a.cfg.DataDir, "remote-keys")} }

// KeyFor gives another node a key that is here; whether it may have it, has been looked at.
func (a *Agent) KeyFor(id string) (peer.Key, error) {
	secret, err := a.keys().read(id)
	return peer.Key{Secret: secret}, err
}

// obtain gives a key that a volume's remote needs: this node's, or, over mutual
// TLS, that of another node with a part in the volume, which is kept then.
func (a *Agent) obtain(ctx context.Context, v api.Volume, id string) (exchange.Key, error) {
	secret, err := a.keys().read(id)
	if api.Is(err, api.NotFound) || api.Is(err, api.Damaged) {
		secret, err = a.fetchKey(ctx, v, id, err)
	}
	if err != nil {
		return nil, err
	}
	return exchange.NewKey(secret)
}

// parts are the nodes with a part in a volume, without this one.
func (a *Agent) parts(v api.Volume) []string {
	var out []string
	for _, h := range v.Heads {
		out = append(out, h.Node, h.From)
		if h.Move != nil {
			out = append(out, h.Move.To)
		}
	}
	for _, d := range v.Dropped {
		out = append(out, d.Node)
	}
	slices.Sort(out)
	return slices.DeleteFunc(slices.Compact(out), func(n string) bool { return n == "" || n == a.cfg.Node })
}

// fetchKey asks the nodes with a part in a volume for a key that is not here
// because of why.
func (a *Agent) fetchKey(ctx context.Context, v api.Volume, id string, why error) ([]byte, error) {
	var silent []string
	for _, node := range a.parts(v) {
		asking, cancel := context.WithTimeout(ctx, 2*a.cfg.PeerWait)
		k, err := a.deps.Peers.Key(asking, node, peer.KeyRequest{Volume: v.ID, ID: id})
		cancel()
		if err != nil {
			if !api.Is(err, api.NotFound) {
				silent = append(silent, fmt.Sprintf("%s (%v)", node, err))
			}
			continue
		}
		if key, err := exchange.NewKey(k.Secret); err != nil || key.ID() != id {
			silent = append(silent, node+" (it gave another key)")
			continue
		}
		_, err = a.keys().keep(k.Secret)
		return k.Secret, err
	}
	var e *api.Error
	if api.Is(why, api.Damaged) || !errors.As(why, &e) {
		return nil, why
	}
	out := *e
	out.Kind = api.Denied
	out.Reason = "what the remote keeps is sealed with it, and " + a.cfg.Node + " does not have it"
	if len(silent) > 0 {
		out.Reason += "; it was not given by " + strings.Join(silent, ", ")
	}
	out.Next = "drover remote key unlock, with a passphrase, an age identity or a recovery copy, brings it here"
	return nil, &out
}

// keysEvery is how often keys are looked for again that could not be had.
const keysEvery = time.Minute

// followKeys brings the keys here that the remotes of this node's volumes need,
// while there still is a node that has them.
func (a *Agent) followKeys(ctx context.Context) {
	ticker := time.NewTicker(keysEvery)
	defer ticker.Stop()
	told := map[string]bool{}
	for {
		for _, v := range a.remotesHere() {
			for _, r := range v.Remotes {
				for _, id := range r.Keys() {
					_, err := a.obtain(ctx, v, id)
					if ctx.Err() != nil {
						return
					}
					if at := v.ID + "/" + id; err != nil && !told[at] {
						told[at] = true
						a.event("volume.key-missing", "warning", v, "", fmt.Sprintf("a remote of volume %s is sealed with a key that %s does not have: %v", v.Name, a.cfg.Node, err), map[string]string{"key": id})
					}
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-a.keysWanted:
		}
	}
}

// wantKeys wakes followKeys if a record names keys.
func (a *Agent) wantKeys(v api.Volume) {
	for _, r := range v.Remotes {
		if len(r.Keys()) > 0 {
			select {
			case a.keysWanted <- struct{}{}:
			default:
			}
			return
		}
	}
}

// volumesHere are the records of the volumes that concern this node and that ok
// wants, each once, by name.
func (a *Agent) volumesHere(ok func(v api.Volume, fresh bool) bool) []api.Volume {
	seen := map[string]api.Volume{}
	a.mu.Lock()
	for key, h := range a.heads {
		if v, fresh, _ := h.state(); v.Deleted == nil && ok(v, fresh) {
			seen[key.volume] = v
		}
	}
	a.mu.Unlock()
	return slices.SortedFunc(maps.Values(seen), func(x, y api.Volume) int { return strings.Compare(x.Name, y.Name) })
}

// remotesHere are those with remotes.
func (a *Agent) remotesHere() []api.Volume {
	return a.volumesHere(func(v api.Volume, _ bool) bool { return len(v.Remotes) > 0 })
}

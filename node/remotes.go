package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/exchange"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/remote/open"
)

// places opens remotes with what this host knows: its logins and its keys.
type places struct{ dataDir string }

// Open implements agent.Remotes.
func (p places) Open(_ context.Context, address string) (remote.Store, error) {
	return open.Open(address, open.Options{})
}

// Key implements agent.Remotes: keys are files of this node, named by their ids.
func (p places) Key(id string) (exchange.Key, error) {
	const op = "use key"
	if id == "" {
		return nil, nil
	}
	if strings.ContainsAny(id, "/.") {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Object: id, Reason: "not the id of a key"}
	}
	secret, err := os.ReadFile(filepath.Join(p.dataDir, "remote-keys", id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &api.Error{Kind: api.NotFound, Op: op, Object: id, Reason: "this node does not have it", Next: "put it into " + p.dataDir + "/remote-keys on the volume's node, as docs/remotes.md says"}
	}
	if err != nil {
		return nil, &api.Error{Kind: api.Unavailable, Op: op, Object: id, Err: err}
	}
	return exchange.NewKey(secret)
}

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/drover-data/drover/api"
)

// incarnationFile says which incarnation of the cluster this host has seen.
const incarnationFile = "incarnation.json"

// Incarnation is the latest life of the cluster that this host has seen. A
// state store of an earlier one is never spoken to again.
type Incarnation struct {
	Number uint64 `json:"number"`
	// Store is the state store's own id, which tells the stores of two
	// incarnations apart before anything is read; "" while it is not known.
	Store string `json:"store,omitempty"`
	// Endpoints and Controls are how it was found.
	Endpoints []string   `json:"endpoints,omitempty"`
	Controls  []api.Node `json:"controls,omitempty"`
}

// LoadIncarnation reads it; the zero value when nothing was noted yet.
func (c Config) LoadIncarnation() (Incarnation, error) {
	path := filepath.Join(c.IdentityDir(), incarnationFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Incarnation{}, nil
	}
	if err != nil {
		return Incarnation{}, fileError("read incarnation", path, err)
	}
	var i Incarnation
	if err := json.Unmarshal(text, &i); err != nil {
		return i, &api.Error{Kind: api.Damaged, Op: "read incarnation", Object: path, Err: err}
	}
	return i, nil
}

// SaveIncarnation notes it durably; one that is earlier than the noted one is refused.
func (c Config) SaveIncarnation(i Incarnation) error {
	before, err := c.LoadIncarnation()
	if err != nil {
		return err
	}
	if i.Number < before.Number {
		return EarlierIncarnation(i.Number, before.Number)
	}
	text, err := json.Marshal(i)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(c.IdentityDir(), incarnationFile), append(text, '\n'))
}

// EarlierIncarnation is the error about a state store of a former life.
func EarlierIncarnation(is, seen uint64) error {
	return &api.Error{
		Kind: api.Unavailable, Op: "reach the state store",
		Reason: fmtIncarnations(is, seen), Next: "stop the state unit that serves the earlier one; drover status on a node of the later one shows the cluster",
	}
}

func fmtIncarnations(is, seen uint64) string {
	return fmt.Sprintf("it is of incarnation %d of the cluster, and this node has seen incarnation %d, which was recovered from a backup since", is, seen)
}

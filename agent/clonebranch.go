package agent

import (
	"context"
	"slices"
	"strings"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/exchange"
	"github.com/drover-data/drover/remote"
)

// cloneBranch is the branch of a remote that a clone begins with. Nobody who
// clones can list the branches first: the volume is not there yet.
func cloneBranch(ctx context.Context, x *exchange.Remote, want string) (string, error) {
	refs, err := x.Store.Refs(ctx, remote.BranchPrefix)
	if err != nil {
		return "", err
	}
	var have []string
	for _, ref := range refs {
		if name, whole := remote.Unescape(ref.Name[len(remote.BranchPrefix):]); whole {
			have = append(have, name)
		} else if want != "" {
			have = append(have, want) // too long to be read from the list: to be asked for by name
		}
	}
	return chooseBranch(x.Store.Info().URL, want, have)
}

// chooseBranch takes the branch that is wanted, or main, or the only one.
func chooseBranch(url, want string, have []string) (string, error) {
	const op = "clone volume"
	slices.Sort(have)
	switch {
	case slices.Contains(have, want):
		return want, nil
	case want == "" && slices.Contains(have, api.MainBranch):
		return api.MainBranch, nil
	case want == "" && len(have) == 1:
		return have[0], nil
	case len(have) == 0:
		return "", &api.Error{Kind: api.NotFound, Op: op, Object: url, Reason: "it has no branch yet", Next: "push to it first, or look whether the URL is right"}
	case want == "":
		return "", &api.Error{Kind: api.NotFound, Op: op, Object: url, Reason: "it has no branch main, but " + strings.Join(have, ", "), Next: "name one with --branch"}
	}
	return "", &api.Error{Kind: api.NotFound, Op: op, Object: url, Reason: "it has no branch " + want + ", but " + strings.Join(have, ", "), Next: "name one of them with --branch"}
}

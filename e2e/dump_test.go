//go:build lab

package e2e

import (
	"context"
	"fmt"
	"os"

	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/state/etcd"
)

// dumpEnvironment tells the test binary to print the state store's records, as
// they are, in place of running tests.
const dumpEnvironment = "DROVER_E2E_DUMP"

func dump(ctx context.Context) error {
	config, err := cluster.LoadConfig("/var/lib/drover")
	if err != nil {
		return err
	}
	keeper, err := auth.Open(config.IdentityDir())
	if err != nil {
		return err
	}
	kv, err := etcd.Open(etcd.ClientConfig{Endpoints: config.Endpoints, TLS: keeper.ClientTLS(nil, auth.OnlyControl)})
	if err != nil {
		return err
	}
	defer kv.Close()
	_, err = kv.List(ctx, state.Root, 0, func(i state.Item) error {
		_, err := fmt.Fprintf(os.Stdout, "%s %s\n", i.Key, i.Value)
		return err
	})
	return err
}

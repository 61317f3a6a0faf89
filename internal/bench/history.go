package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/api/client"
	"github.com/drover-data/drover/demo"
	"github.com/drover-data/drover/lab"
)

// history measures commits and branches as the agent's socket answers them, and
// checkouts of a database against stopping and starting its container.
func (b *bench) history(ctx context.Context) error {
	if err := b.load(ctx, lab.BusyboxImage); err != nil {
		return err
	}
	if err := b.load(ctx, lab.PostgresImage); err != nil {
		return err
	}
	c, err := b.agent("node1")
	if err != nil {
		return err
	}
	b.header()
	for _, v := range []struct {
		name string
		mib  int
	}{{"small", 100}, {"large", 10_000}} {
		fill := fmt.Sprintf("docker run --rm --network none --volume-driver drover -v %s:/d %s dd if=/dev/urandom of=/d/f bs=1M count=%d && sync", v.name, lab.BusyboxImageName, v.mib)
		if _, err := b.seconds(ctx, "node1", fill); err != nil {
			return err
		}
		pause(ctx, 5*time.Second)
		if err := b.commits(ctx, c, v.name, fmt.Sprintf("of %d MiB", v.mib)); err != nil {
			return err
		}
	}
	if err := b.stage.Database(ctx, "node1", b.scale); err != nil {
		return err
	}
	load := b.pgbench(ctx, "node1")
	err = b.commits(ctx, c, demo.Volume, "under pgbench")
	load()
	if err != nil {
		return err
	}
	return b.checkouts(ctx)
}

// commits makes some, and a branch at each.
func (b *bench) commits(ctx context.Context, c *client.Client, volume, what string) error {
	var made, branched []float64
	for i := range 6 * b.runs {
		begin := time.Now()
		if err := c.Do(ctx, http.MethodPost, "/v1/volumes/"+volume+"/commits", api.MakeCommit{Message: fmt.Sprint(i), Consistency: api.ConsistencyCrash}, nil); err != nil {
			return err
		}
		made = append(made, time.Since(begin).Seconds()*1000)
		begin = time.Now()
		if err := c.Do(ctx, http.MethodPost, "/v1/volumes/"+volume+"/branches", api.MakeBranch{Name: fmt.Sprint("b", i)}, nil); err != nil {
			return err
		}
		branched = append(branched, time.Since(begin).Seconds()*1000)
		pause(ctx, 300*time.Millisecond)
	}
	b.figure("commit "+what, made, "ms")
	b.figure("branch "+what, branched, "ms")
	return nil
}

// checkouts go to and fro between two branches of the database.
func (b *bench) checkouts(ctx context.Context) error {
	var over []float64
	d := b.binary
	for i := range 2 * b.runs {
		restart, err := b.seconds(ctx, "node1", "docker stop -t 60 "+demo.Container+" && docker start "+demo.Container)
		if err != nil {
			return err
		}
		pause(ctx, 3*time.Second) // it recovers, and writes what that takes
		to := []string{"b0", "main"}[i%2]
		checkout, err := b.seconds(ctx, "node1", d+" checkout "+demo.Volume+" "+to)
		if err != nil {
			return err
		}
		pause(ctx, 3*time.Second)
		over = append(over, (checkout-restart)*1000)
	}
	b.figure("checkout over docker stop and start", over, "ms")
	return nil
}

// agent is a client of a host's agent, through its socket.
func (b *bench) agent(host string) (*client.Client, error) {
	h, err := b.lab.Host(host)
	if err != nil {
		return nil, err
	}
	socket := filepath.Join("/proc", fmt.Sprint(h.PID()), "root/run/drover/drover.sock")
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return client.New("http://drover", &http.Transport{DialContext: dial}, nil), nil
}

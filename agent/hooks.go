package agent

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
)

// Labels of a container that say how commits of its volumes become
// application-consistent: HookLabel has the kind, and for the kind "command"
// the two others have shell commands.
const (
	HookLabel       = "drover.hook"
	HookBeforeLabel = "drover.hook.before"
	HookAfterLabel  = "drover.hook.after"
	HookUserLabel   = "drover.hook.user"
)

// labelled reports whether some container here has a hook's label. An engine
// that does not answer has none: a commit without a hook does not need it.
func (a *Agent) labelled(ctx context.Context) bool {
	all, err := a.deps.Engine.List(ctx, Driver)
	return err == nil && slices.ContainsFunc(all, func(c container.Container) bool { return c.Labels[HookLabel] != "" && c.State == container.Running })
}

// hook finds the hook for a commit and the container it runs in; nil when
// none is wanted, or nothing runs that it could prepare.
func (x *hold) hook(ctx context.Context, running []container.Container, want api.Consistency) (*api.Hook, container.Container, error) {
	const op = "commit"
	if want == api.ConsistencyPaused {
		return nil, container.Container{}, nil
	}
	hook := x.volume.Hook
	if hook == nil {
		for _, c := range running {
			if kind := c.Labels[HookLabel]; kind != "" {
				found := api.Hook{Kind: kind, Container: c.Name, User: c.Labels[HookUserLabel]}
				if kind == "command" {
					found.Before, found.After = shell(c.Labels[HookBeforeLabel]), shell(c.Labels[HookAfterLabel])
				}
				if err := found.Check(); err != nil {
					return nil, c, err
				}
				return &found, c, nil
			}
		}
	}
	needed := want == api.ConsistencyApplication
	fail := func(reason, next string) (*api.Hook, container.Container, error) {
		if !needed {
			return nil, container.Container{}, nil
		}
		return nil, container.Container{}, &api.Error{Kind: api.Unsupported, Op: op, Object: x.volume.Name, Reason: reason, Next: next}
	}
	if hook == nil {
		return fail("it has no hook that would prepare its application", "drover volume hook "+x.volume.Name+" --kind …, or the label "+HookLabel+" of the container")
	}
	if hook.Container != "" {
		for _, c := range running {
			if c.Name == hook.Container {
				return hook, c, nil
			}
		}
		all, err := x.h.a.deps.Engine.List(ctx, "")
		if err != nil {
			return nil, container.Container{}, err
		}
		for _, c := range all {
			if c.Name == hook.Container && c.State == container.Running {
				return hook, c, nil
			}
		}
		return fail("its hook is for container "+hook.Container+", which does not run", "start it, or commit with --consistency crash or paused")
	}
	switch len(running) {
	case 1:
		return hook, running[0], nil
	case 0:
		return fail("no container runs that its hook could prepare", "start it, or commit with --consistency crash or paused")
	}
	needed = true
	return fail(fmt.Sprintf("%d containers use it, and its hook names none", len(running)), "name one with drover volume hook "+x.volume.Name+" --container")
}

func shell(text string) []string {
	if text == "" {
		return nil
	}
	return []string{"sh", "-c", text}
}

// run prepares the application. What it began is undone when the hold ends.
//
// PostgreSQL needs no backup mode: what is taken is one instant of all its
// files, its log included, which is what it recovers from by design; the
// checkpoint makes that recovery short. MySQL's read lock lasts as long as
// the session that took it, so that one is held open, and looked at in the end.
func (x *hold) run(ctx context.Context, hook api.Hook, in container.Container) error {
	x.hooks = append(x.hooks, hook.Kind+" in "+in.Name)
	var err error
	switch hook.Kind {
	case "postgresql":
		_, err = x.h.a.deps.Engine.Exec(ctx, in.ID, sql("psql", "postgres", hook.User, "-v ON_ERROR_STOP=1 -X -q -d postgres -c CHECKPOINT"))
	case "mysql":
		err = x.lockTables(ctx, hook, in)
	case "redis":
		err = x.saveRedis(ctx, hook, in)
	case "command":
		err = x.command(ctx, hook, in)
	default:
		err = &api.Error{Kind: api.Invalid, Reason: "there is no hook of kind " + hook.Kind}
	}
	if err != nil {
		return &api.Error{Kind: api.Unavailable, Op: "prepare " + in.Name + " for a commit", Object: x.volume.Name, Reason: "its " + hook.Kind + " hook failed, so nothing was committed", Err: err, Next: "mend the hook, or commit with --consistency crash or paused"}
	}
	return nil
}

// sql is a database's client, run as the user that the image keeps for it
// where the command runs as root.
func sql(client, account, user, options string) []string {
	if user == "" {
		user = account
	}
	return []string{"sh", "-c", `u="$1"; shift; if [ "$(id -u)" = 0 ] && [ "$1" = psql ] && id "$u" >/dev/null 2>&1 && command -v su >/dev/null; then exec su "$u" -c "$1 $2"; fi; exec $1 -U "$u" $2`, "drover", user, client, options}
}

// lockTables holds MySQL's or MariaDB's global read lock in a session.
func (x *hold) lockTables(ctx context.Context, hook api.Hook, in container.Container) error {
	sessions, ok := x.h.a.deps.Engine.(container.Sessions)
	if !ok {
		return &api.Error{Kind: api.Unsupported, Reason: "this container engine has no sessions"}
	}
	user := hook.User
	if user == "" {
		user = "root"
	}
	script := `p="${MYSQL_ROOT_PASSWORD:-$MARIADB_ROOT_PASSWORD}"; [ "$1" = root ] && [ -n "$p" ] && export MYSQL_PWD="$p"; c=mysql; command -v mysql >/dev/null || c=mariadb; exec "$c" -u "$1" --batch --skip-column-names --unbuffered`
	s, err := sessions.Session(context.WithoutCancel(ctx), in.ID, []string{"sh", "-c", script, "drover", user})
	if err != nil {
		return err
	}
	lines := bufio.NewReader(s)
	say := func(ctx context.Context, statement, word string) error {
		stop := context.AfterFunc(ctx, func() { s.Close() })
		defer stop()
		if _, err := fmt.Fprintf(s, "%s SELECT '%s';\n", statement, word); err != nil {
			return err
		}
		var heard bytes.Buffer
		for {
			line, err := lines.ReadString('\n')
			if strings.TrimSpace(line) == word {
				return nil
			}
			heard.WriteString(line)
			if err != nil {
				if ctx.Err() != nil {
					err = context.Cause(ctx)
				}
				return fmt.Errorf("%s: %w", strings.TrimSpace(heard.String()), err)
			}
		}
	}
	// Closing the session is enough for the server to release the lock.
	if err := say(ctx, "FLUSH TABLES WITH READ LOCK;", "drover-locked"); err != nil {
		s.Close()
		return err
	}
	x.onEnd(func(ctx context.Context) error {
		defer s.Close()
		return say(ctx, "UNLOCK TABLES;", "drover-released")
	})
	return nil
}

// saveRedis has the data set written out in the background, and waits for it.
func (x *hold) saveRedis(ctx context.Context, hook api.Hook, in container.Container) error {
	cli := func(words string) ([]byte, error) {
		script := `c=redis-cli; command -v redis-cli >/dev/null || c=valkey-cli; [ -n "$REDIS_PASSWORD" ] && export REDISCLI_AUTH="$REDIS_PASSWORD"; [ -n "$1" ] && set -- --user "$1" || set --; exec $c "$@" ` + words
		return x.h.a.deps.Engine.Exec(ctx, in.ID, []string{"sh", "-c", script, "drover", hook.User})
	}
	out, err := cli("BGSAVE")
	if err != nil {
		return err
	}
	if text := string(out); !strings.Contains(text, "started") && !strings.Contains(text, "in progress") {
		return fmt.Errorf("BGSAVE: %s", strings.TrimSpace(text))
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		info, err := cli("INFO persistence")
		if err != nil {
			return err
		}
		text := string(info)
		if strings.Contains(text, "rdb_bgsave_in_progress:0") {
			if !strings.Contains(text, "rdb_last_bgsave_status:ok") {
				return fmt.Errorf("BGSAVE failed; its log says why")
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// command runs a user's own commands. After runs even when Before failed, and
// even when the agent ended in between.
func (x *hold) command(ctx context.Context, hook api.Hook, in container.Container) error {
	if len(hook.After) > 0 {
		key := "hook " + in.ID
		if err := put(x.h.a.index, bucketHeld, key, heldBack{Name: in.Name, After: hook.After}); err != nil {
			return err
		}
		x.onEnd(func(ctx context.Context) error {
			return x.h.a.letOn(ctx, key, heldBack{Name: in.Name, After: hook.After})
		})
	}
	if len(hook.Before) == 0 {
		return nil
	}
	_, err := x.h.a.deps.Engine.Exec(ctx, in.ID, hook.Before)
	return err
}

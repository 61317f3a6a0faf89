package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/drover-data/drover/api"
)

// Names of the images that a lab can make without any registry.
const (
	PostgresImageName  = "drover-lab/postgres:15"
	DatabasesImageName = "drover-lab/databases:1"
	BusyboxImageName   = "drover-lab/busybox:1"
)

// CacheDir is where images are kept between runs: $DROVER_CACHE or the user's
// cache directory.
func CacheDir() (string, error) {
	if dir := os.Getenv("DROVER_CACHE"); dir != "" {
		return dir, nil
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", &api.Error{Kind: api.Invalid, Op: "find the cache directory", Next: "set DROVER_CACHE", Err: err}
	}
	return filepath.Join(base, "drover"), nil
}

// imageConfig is what an image says of its containers, as in an OCI image.
type imageConfig struct {
	Env        []string `json:",omitempty"`
	Entrypoint []string `json:",omitempty"`
	Cmd        []string `json:",omitempty"`
	StopSignal string   `json:",omitempty"`
}

// recipe makes an image. Its text is part of the cache's file name, so that a
// change of the recipe makes a new image.
type recipe struct {
	name     string // repository:tag
	packages []string
	script   string // the entrypoint, "" for none
	config   imageConfig
	build    func(ctx context.Context, root string) error // writes root
}

// pruned leaves out of the image what a database needs no part of: it halves
// the time to load it into a host.
var pruned = []string{
	"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/i18n/*", "/usr/share/info/*",
	"/usr/lib/*/libLLVM*", "/usr/lib/llvm*", "/usr/lib/postgresql/*/lib/bitcode/*",
}

const postgresEntrypoint = `#!/bin/sh
set -e
[ "$1" = postgres ] || exec "$@"
data=/var/lib/postgresql/data
mkdir -p "$data"
if [ "$(id -u)" = 0 ]; then
	chown postgres:postgres "$data"
	exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$data/PG_VERSION" ]; then
	chmod 700 "$data"
	initdb --pgdata="$data" --username=postgres --auth=trust --no-instructions --no-sync
	echo "host all all all trust" >>"$data/pg_hba.conf"
	sync
fi
exec "$@"
`

// PostgresImage gives the path of a tar for "docker load" with PostgreSQL 15
// from Debian, named PostgresImageName. Its data is in
// /var/lib/postgresql/data, it trusts everybody, and listens on all addresses:
// for tests only. It is made once and kept in cacheDir ("": CacheDir).
func PostgresImage(ctx context.Context, cacheDir string, progress io.Writer) (string, error) {
	return cachedImage(ctx, cacheDir, progress, recipe{
		name: PostgresImageName, packages: []string{"mmdebstrap"}, script: postgresEntrypoint,
		config: imageConfig{
			Env:        []string{"PATH=/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PGDATA=/var/lib/postgresql/data", "LANG=C.UTF-8"},
			Entrypoint: []string{"/entrypoint"}, Cmd: []string{"postgres", "-c", "listen_addresses=*", "-c", "jit=off"}, StopSignal: "SIGINT",
		},
		build: func(ctx context.Context, root string) error {
			if err := debian(ctx, root, "postgresql-15", `"$1"/var/lib/postgresql/15 "$1"/etc/postgresql`); err != nil {
				return err
			}
			sockets := filepath.Join(root, "run/postgresql") // mmdebstrap leaves /run empty
			return errors.Join(os.MkdirAll(sockets, 0o755), os.Chmod(sockets, 0o777|os.ModeSticky))
		},
	})
}

// debian makes a small Debian with some packages in root, without what clutter
// names.
func debian(ctx context.Context, root, packages, clutter string) error {
	args := []string{"--mode=root", "--variant=essential", "--include=" + packages, "--format=directory"}
	for _, p := range pruned {
		args = append(args, "--dpkgopt=path-exclude="+p)
	}
	args = append(args,
		`--customize-hook=rm -rf `+clutter+` "$1"/var/lib/apt "$1"/var/cache/apt "$1"/usr/lib/x86_64-linux-gnu/perl "$1"/usr/share/perl "$1"/var/log/*`,
		"bookworm", root, "-")
	return command(ctx, aptSources(), "mmdebstrap", args...)
}

const databasesEntrypoint = `#!/bin/sh
set -e
data=/var/lib/data
case "$1" in
mariadbd)
	mkdir -p "$data" /run/mysqld
	chown mysql:mysql "$data" /run/mysqld
	[ -d "$data/mysql" ] || mariadb-install-db --user=mysql --datadir="$data" --skip-test-db --auth-root-authentication-method=normal >/dev/null
	exec "$@" --no-defaults --user=mysql --datadir="$data" --socket=/run/mysqld/mysqld.sock --skip-networking ;;
redis-server)
	exec "$@" --dir "$data" --save '' --bind 127.0.0.1 ;;
esac
exec "$@"
`

// DatabasesImage gives the path of a tar for "docker load" with MariaDB and
// Redis from Debian, named DatabasesImageName: the command is mariadbd or
// redis-server, its data is in /var/lib/data, and it trusts everybody in the
// container: for tests only.
func DatabasesImage(ctx context.Context, cacheDir string, progress io.Writer) (string, error) {
	return cachedImage(ctx, cacheDir, progress, recipe{
		name: DatabasesImageName, packages: []string{"mmdebstrap"}, script: databasesEntrypoint,
		config: imageConfig{Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}, Entrypoint: []string{"/entrypoint"}, Cmd: []string{"mariadbd"}},
		build: func(ctx context.Context, root string) error {
			return debian(ctx, root, "mariadb-server,redis-server", `"$1"/var/lib/mysql/*`)
		},
	})
}

// aptSources gives the machine's own sources in the form that mmdebstrap reads.
func aptSources() []byte {
	var out bytes.Buffer
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*.sources")
	lists, _ := filepath.Glob("/etc/apt/sources.list.d/*.list")
	if len(files) == 0 { // the two forms do not mix in one stream
		files = append(lists, "/etc/apt/sources.list")
	}
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil {
			out.Write(data)
			out.WriteString("\n\n")
		}
	}
	return out.Bytes()
}

// BusyboxImage is a tiny image with a static busybox, named BusyboxImageName,
// for quick tests. It resolves no names: the static C library cannot.
func BusyboxImage(ctx context.Context, cacheDir string, progress io.Writer) (string, error) {
	return cachedImage(ctx, cacheDir, progress, recipe{
		name: BusyboxImageName, packages: []string{"busybox-static"},
		config: imageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}},
		build: func(ctx context.Context, root string) error {
			for _, dir := range []string{"bin", "tmp", "etc", "root"} {
				if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
					return err
				}
			}
			if err := command(ctx, nil, "cp", "/bin/busybox", filepath.Join(root, "bin/busybox")); err != nil {
				return err
			}
			return command(ctx, nil, "chroot", root, "/bin/busybox", "--install", "-s", "/bin")
		},
	})
}

func command(ctx context.Context, stdin []byte, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, tailOf(strings.TrimSpace(string(out))))
	}
	return nil
}

func cachedImage(ctx context.Context, cacheDir string, progress io.Writer, r recipe) (path string, err error) {
	defer func() {
		if err != nil {
			err = &api.Error{Kind: kindOr(err, api.Internal), Op: "make image", Object: r.name, Err: err}
		}
	}()
	if progress == nil {
		progress = io.Discard
	}
	if cacheDir == "" {
		if cacheDir, err = CacheDir(); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return "", err
	}
	id := sha256.Sum256(fmt.Appendf(nil, "3 %q %q %q %q", r.name, r.script, r.config, pruned))
	path = filepath.Join(cacheDir, strings.NewReplacer("/", "-", ":", "-").Replace(r.name)+"-"+hex.EncodeToString(id[:6])+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := Require(ctx, progress, r.packages...); err != nil {
		return "", err
	}
	fmt.Fprintf(progress, "making image %s, once\n", r.name)
	work, err := os.MkdirTemp(cacheDir, "making-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	root := filepath.Join(work, "root")
	if err := r.build(ctx, root); err != nil {
		return "", err
	}
	if r.script != "" {
		if err := os.WriteFile(filepath.Join(root, "entrypoint"), []byte(r.script), 0o755); err != nil {
			return "", err
		}
	}
	layer := filepath.Join(work, "layer.tar")
	if err := command(ctx, nil, "tar", "--numeric-owner", "--sort=name", "--exclude=./dev/*", "--exclude=./proc/*", "--exclude=./sys/*", "-C", root, "-cf", layer, "."); err != nil {
		return "", err
	}
	made := filepath.Join(work, "image.tar")
	if err := packImage(made, layer, r); err != nil {
		return "", err
	}
	return path, os.Rename(made, path) // another process may have been faster: the same content
}

// packImage writes the archive that "docker save" would.
func packImage(path, layer string, r recipe) error {
	in, err := os.Open(layer)
	if err != nil {
		return err
	}
	defer in.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, in)
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "2000-01-01T00:00:00Z", "config": r.config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum.Sum(nil))}},
	})
	if err != nil {
		return err
	}
	configSum := sha256.Sum256(config)
	configName := hex.EncodeToString(configSum[:]) + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{r.name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	w := tar.NewWriter(out)
	add := func(name string, size int64, content io.Reader) error {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size}); err != nil {
			return err
		}
		_, err := io.Copy(w, content)
		return err
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return errors.Join(
		add(configName, int64(len(config)), bytes.NewReader(config)),
		add("manifest.json", int64(len(manifest)), bytes.NewReader(manifest)),
		add("layer.tar", size, in), w.Close(), out.Close())
}

// LoadImage brings an image's tar into the Docker daemons of all hosts that
// are on, at the same time.
func (l *Lab) LoadImage(ctx context.Context, path string) error {
	hosts := l.Hosts()
	errs := make([]error, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() {
			if !h.On() {
				return
			}
			f, err := os.Open(path)
			if err == nil {
				defer f.Close()
				err = h.Run(ctx, Cmd{Args: []string{"docker", "load", "-q"}, Stdin: f})
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

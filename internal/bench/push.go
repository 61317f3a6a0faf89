package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/drover-data/drover/demo"
	"github.com/drover-data/drover/lab"
)

// tool is a program that keeps copies of a directory tree somewhere.
type tool struct {
	name string
	// begin makes an empty repository, first and next put a state into it,
	// restore brings the last one back into an empty directory. {repo}, {dir},
	// {n} and {out} are replaced.
	begin, put, restore string
}

const environment = "export RESTIC_PASSWORD=bench KOPIA_PASSWORD=bench RESTIC_CACHE_DIR={repo}.cache BORG_BASE_DIR={repo}.base BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes KOPIA_CHECK_FOR_UPDATES=false KOPIA_CONFIG_PATH={repo}.config KOPIA_CACHE_DIRECTORY={repo}.cache PATH={bin}:$PATH; "

// tools read the same snapshots as Drover, mounted at one place, with the
// settings they come with.
var tools = []tool{
	{
		"restic", "restic init -q -r {repo}",
		"cd {dir} && restic backup -q -r {repo} .", "restic restore -q -r {repo} latest --target {out}",
	},
	{
		"kopia", "mkdir {repo} && kopia repository create filesystem --path {repo}",
		"cd {dir} && kopia snapshot create --no-progress --json . >{repo}.json", `kopia snapshot restore --no-progress $(grep -o '"id":"[^"]*"' {repo}.json | head -1 | cut -d'"' -f4) {out}`,
	},
	{
		"borg", "borg init -e none {repo}",
		"cd {dir} && borg create {repo}::s{n} .", "cd {out} && borg extract {repo}::s{n}",
	},
}

// peers are the tools that are built from their modules, in the versions that
// docs/benchmarks.md names. Borg is Debian's.
var peers = []struct{ name, module, version, command, tags string }{
	{"restic", "github.com/restic/restic", "v0.18.1", "github.com/restic/restic/cmd/restic", ""},
	{"kopia", "github.com/kopia/kopia", "v0.22.3", "github.com/kopia/kopia", "nohtmlui"},
}

// buildPeers builds what is not in the cache yet, and says where it is.
func (b *bench) buildPeers(ctx context.Context) (dir string, err error) {
	if err := lab.Require(ctx, b.out, "borgbackup"); err != nil {
		return "", err
	}
	cache, err := lab.CacheDir()
	if err != nil {
		return "", err
	}
	for _, p := range peers {
		at := filepath.Join(cache, "peers")
		out := filepath.Join(at, p.name+"-"+p.version)
		link := filepath.Join(at, p.name)
		if _, err := os.Stat(out); err != nil {
			b.say("building %s %s, once", p.name, p.version)
			work, err := os.MkdirTemp("", "peer-")
			if err != nil {
				return "", err
			}
			defer os.RemoveAll(work)
			mod := fmt.Sprintf("module peers\n\ngo 1.25.0\n\nrequire %s %s\n", p.module, p.version)
			if err := os.WriteFile(filepath.Join(work, "go.mod"), []byte(mod), 0o600); err != nil {
				return "", err
			}
			cmd := exec.CommandContext(ctx, "go", "build", "-mod=mod", "-tags", p.tags, "-o", out, p.command)
			cmd.Dir = work
			if text, err := cmd.CombinedOutput(); err != nil {
				return "", fmt.Errorf("build %s: %w: %s", p.name, err, text)
			}
		}
		_ = os.Remove(link)
		if err := os.Symlink(out, link); err != nil {
			return "", err
		}
		dir = at
	}
	return dir, nil
}

// race is pushes of one database by Drover and others, state after state.
type race struct {
	b     *bench
	bin   string // where built tools are
	dir   string // on the host
	n     int
	repos map[string]string // current repository by tool
	took  map[string][]float64
	bytes map[string][]float64
}

// push compares pushes and restores with other tools', interleaved, of the
// same states of one database.
func (b *bench) push(ctx context.Context) error {
	if err := b.load(ctx, lab.PostgresImage); err != nil {
		return err
	}
	if err := b.stage.Database(ctx, "node1", b.scale); err != nil {
		return err
	}
	h, err := b.lab.Host("node1")
	if err != nil {
		return err
	}
	bin, err := b.buildPeers(ctx)
	if err != nil {
		return err
	}
	r := &race{b: b, bin: bin, dir: filepath.Join(h.Dir(), "race"), repos: map[string]string{}}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(r.dir)
	b.header()
	for _, part := range []struct {
		what  string
		runs  int
		fresh bool
		load  string
	}{
		{"first push", 3, true, ""},
		{"push after 500 transactions", max(b.runs, 5), false, "pgbench -U postgres -n -c 1 -t 500 postgres"},
		{"push after 15 s of pgbench", 3, false, "pgbench -U postgres -n -c 4 -T 15 postgres"},
	} {
		r.took, r.bytes = map[string][]float64{}, map[string][]float64{}
		for range part.runs {
			if err := r.round(ctx, part.fresh, part.load); err != nil {
				return err
			}
		}
		r.report(part.what, true)
	}
	return r.back(ctx)
}

func (r *race) sh(ctx context.Context, script string) (float64, error) {
	return r.b.seconds(ctx, "node1", script)
}

// round brings the database to its next state and lets each tool put it away,
// each time beginning with another one.
func (r *race) round(ctx context.Context, fresh bool, load string) error {
	d := r.b.binary
	r.n++
	if load != "" {
		if _, err := r.sh(ctx, "docker exec "+demo.Container+" "+load); err != nil {
			return err
		}
	}
	at := filepath.Join(r.dir, "at") // the same each time: the others know files again by their path
	script := fmt.Sprintf("docker exec %s psql -U postgres -h 127.0.0.1 -qc CHECKPOINT; sync; %s commit %s -m %d && mkdir -p %s && %s mount %s %s && cat $(find %s -type f) >/dev/null",
		demo.Container, d, demo.Volume, r.n, at, d, demo.Volume, at, at)
	if _, err := r.sh(ctx, script); err != nil {
		return err
	}
	runners := []string{"drover"}
	for _, t := range tools {
		runners = append(runners, t.name)
	}
	for i := range runners {
		if err := r.put(ctx, runners[(i+r.n)%len(runners)], at, fresh); err != nil {
			return err
		}
	}
	_, err := r.sh(ctx, d+" umount "+at)
	return err
}

func (r *race) put(ctx context.Context, name, at string, fresh bool) error {
	if fresh {
		r.repos[name] = filepath.Join(r.dir, fmt.Sprintf("%s%d", name, r.n))
	}
	repo, script := r.repos[name], ""
	if name == "drover" {
		remote := "r" + filepath.Base(repo)
		if fresh {
			if _, err := r.sh(ctx, fmt.Sprintf("mkdir %s && %s remote add %s %s file://%s", repo, r.b.binary, demo.Volume, remote, repo)); err != nil {
				return err
			}
		}
		script = fmt.Sprintf("%s push %s %s", r.b.binary, demo.Volume, remote)
	} else {
		t := r.tool(name)
		if fresh {
			if _, err := r.sh(ctx, r.fill(t.begin, repo, at)); err != nil {
				return err
			}
		}
		script = r.fill(t.put, repo, at)
	}
	before, err := usage(repo)
	if err != nil {
		return err
	}
	took, err := r.sh(ctx, script)
	if err != nil {
		return err
	}
	after, err := usage(repo)
	r.took[name] = append(r.took[name], took)
	r.bytes[name] = append(r.bytes[name], float64(after-before)/1e6)
	return err
}

func (r *race) tool(name string) tool {
	for _, t := range tools {
		if t.name == name {
			return t
		}
	}
	return tool{}
}

func (r *race) fill(script, repo, at string) string {
	return strings.NewReplacer("{repo}", repo, "{dir}", at, "{n}", fmt.Sprint(r.n), "{out}", at, "{bin}", r.bin).Replace(environment + script)
}

// report prints what was taken, and ratios of pairs: the fastest and the
// smallest of the others in each round against Drover in that round.
func (r *race) report(what string, sizes bool) {
	names := []string{"drover"}
	for _, t := range tools {
		names = append(names, t.name)
	}
	var faster, smaller []float64
	for i := range r.took["drover"] {
		time, size := 0.0, 0.0
		for _, t := range tools {
			if x := r.took[t.name][i]; time == 0 || x < time {
				time = x
			}
			if sizes {
				if x := r.bytes[t.name][i]; size == 0 || x < size {
					size = x
				}
			}
		}
		faster = append(faster, time/r.took["drover"][i])
		if sizes {
			smaller = append(smaller, r.bytes["drover"][i]/size)
		}
	}
	for _, name := range names {
		r.b.figure(what+", "+name, r.took[name], "s")
		if sizes {
			r.b.figure(what+", "+name+", added", r.bytes[name], "MB")
		}
	}
	r.b.figure(what+", times as fast as the fastest other", faster, "times")
	if sizes {
		r.b.figure(what+", bytes against the smallest other's", smaller, "times")
	}
}

// back compares full restores, and brings a small change onto a copy.
func (r *race) back(ctx context.Context) error {
	d := r.b.binary
	r.took = map[string][]float64{}
	for i := range 3 {
		script := fmt.Sprintf("%s clone file://%s back%d", d, r.repos["drover"], i)
		took, err := r.sh(ctx, script)
		if err != nil {
			return err
		}
		r.took["drover"] = append(r.took["drover"], took)
		for _, t := range tools {
			dir := filepath.Join(r.dir, fmt.Sprintf("%s-back%d", t.name, i))
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			took, err := r.sh(ctx, r.fill(t.restore, r.repos[t.name], dir)+"; sync -f "+dir)
			if err != nil {
				return err
			}
			r.took[t.name] = append(r.took[t.name], took)
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
		}
	}
	r.report("full restore", false)
	var pulls []float64
	remote := "r" + filepath.Base(r.repos["drover"])
	for range max(r.b.runs, 5) {
		if _, err := r.sh(ctx, fmt.Sprintf("docker exec %s pgbench -U postgres -n -c 1 -t 500 postgres && %s commit %s -m more && %s push %s %s", demo.Container, d, demo.Volume, d, demo.Volume, remote)); err != nil {
			return err
		}
		took, err := r.sh(ctx, d+" pull back0")
		if err != nil {
			return err
		}
		pulls = append(pulls, took)
	}
	r.b.figure("pull of 500 transactions onto a copy", pulls, "s")
	return nil
}

// usage is what a directory takes on its disk.
func usage(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			bytes += info.Size()
		}
		return err
	})
	return bytes, err
}

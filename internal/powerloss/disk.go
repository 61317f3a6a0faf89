package powerloss

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

// environment tells the test binary that it is to serve a disk.
const environment = "DROVER_POWERLOSS_DISK"

// Main is called at the beginning of TestMain of each package that uses a
// Disk: in the process that is to serve one it does that and does not return.
func Main() {
	dir := os.Getenv(environment)
	if dir == "" {
		return
	}
	size, err := strconv.ParseInt(os.Getenv(environment+"_SIZE"), 10, 64)
	if err == nil {
		err = serve(dir, size)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "powerloss:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Disk is a file that forgets what was not flushed.
type Disk struct {
	path string

	mu  sync.Mutex
	out *gob.Encoder // guarded by mu
	in  *gob.Decoder // guarded by mu
}

// New gives an empty disk, which is gone when the test is over.
func New(t testing.TB, size int64) *Disk {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command(self, "-test.run=^$")
	cmd.Env = append(os.Environ(), environment+"="+dir, fmt.Sprintf("%s_SIZE=%d", environment, size))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, cmd, in) })
	d := &Disk{path: filepath.Join(dir, fileName), out: gob.NewEncoder(in), in: gob.NewDecoder(out)}
	var hello answer
	if err := d.in.Decode(&hello); err != nil {
		t.Fatalf("the process that serves the disk ended (is powerloss.Main called in TestMain?): %v", err)
	}
	return d
}

func stop(t testing.TB, cmd *exec.Cmd, in io.Closer) {
	in.Close()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("the process that serves the disk: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the process that serves the disk does not end")
		_ = cmd.Process.Kill()
		<-done
	}
}

// Path is the file.
func (d *Disk) Path() string { return d.path }

func (d *Disk) ask(q request) (answer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var a answer
	if err := errors.Join(d.out.Encode(q), d.in.Decode(&a)); err != nil {
		return a, err
	}
	if a.Err != "" {
		return a, errors.New(a.Err)
	}
	return a, nil
}

func (d *Disk) must(t testing.TB, q request) answer {
	t.Helper()
	a, err := d.ask(q)
	if err != nil {
		t.Fatalf("disk: %s: %v", q.What, err)
	}
	return a
}

// Position is how many writes and flushes there were since the disk was loaded.
func (d *Disk) Position(t testing.TB) int {
	t.Helper()
	return d.must(t, request{What: "position"}).Number
}

// Cut cuts the power after so many more writes and flushes; 0 is now. All
// input and output fails from then on, until the disk is loaded.
func (d *Disk) Cut(t testing.TB, events int) {
	t.Helper()
	d.must(t, request{What: "cut", Events: events})
}

// Off reports whether the power is off.
func (d *Disk) Off(t testing.TB) bool {
	t.Helper()
	return d.must(t, request{What: "off"}).Number == 1
}

// Tape is a recording of the disk's.
type Tape struct {
	d *Disk
	n int
	// End is the moment after the last event.
	End int
}

// Eject ends the recording, when whoever has the disk open has let go of it. The
// disk holds all that was written.
func (d *Disk) Eject(t testing.TB) *Tape {
	t.Helper()
	end := d.Position(t)
	return &Tape{d, d.must(t, request{What: "eject"}).Number, end}
}

// Flushes lists the moments right after each flush, from one moment on.
func (p *Tape) Flushes(t testing.TB, from int) []int {
	t.Helper()
	return p.d.must(t, request{What: "flushes", Tape: p.n, At: from}).Numbers
}

// Load puts the disk into the state that a power cut at that moment of the
// tape left behind, and begins a new recording.
func (p *Tape) Load(t testing.TB, at int, mode Mode, seed uint64) {
	t.Helper()
	p.d.must(t, request{What: "load", Tape: p.n, At: at, Mode: mode, Seed: seed})
}

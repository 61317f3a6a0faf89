package storagetest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
)

// identity demands that what Identity says finds the mount of the head at
// target, and no other mount.
func (e *env) identity(key storage.HeadKey, target string) {
	e.t.Helper()
	id, err := e.Identity(e.ctx, key)
	e.ok(err, "Identity")
	all, err := mountinfo.GetMounts(nil)
	e.ok(err, "read mountinfo")
	var found []string
	for _, m := range all {
		dev := fmt.Sprintf("%d:%d", m.Major, m.Minor)
		if dev == id.MountDevice && (m.Root == id.Root || strings.HasPrefix(m.Root, strings.TrimSuffix(id.Root, "/")+"/")) {
			found = append(found, m.Mountpoint)
		}
	}
	if !slices.Contains(found, target) {
		e.t.Errorf("Identity %+v finds %q, not %s", id, found, target)
	}
	var st unix.Stat_t
	e.ok(unix.Stat(target+"/m", &st), "stat")
	if len(id.Devices) > 0 && !slices.Contains(id.Devices, st.Dev) {
		e.t.Errorf("files of the head have device %d, Identity says %d", st.Dev, id.Devices)
	}
}

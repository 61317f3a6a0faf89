package hostfs

import (
	"context"
	"errors"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// EachTwo calls f for everything two levels below dir of the pool, and strange
// for what cannot be a volume's directory.
func EachTwo(root int, dir string, f func(volume, name string) error, strange func(path string)) error {
	volumes, err := Names(root, dir)
	if err != nil {
		return err
	}
	sort.Strings(volumes)
	for _, v := range volumes {
		names, err := Names(root, dir+"/"+v)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || err == nil && CheckID("volume", v) != nil {
			strange(dir + "/" + v)
			continue
		}
		if err != nil {
			return err
		}
		sort.Strings(names)
		for _, n := range names {
			if err := f(v, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// ScanSnapshots reads a volume's snapshots, or all, each by read. What read
// refuses for itself is strange and given by its path below the root.
func ScanSnapshots(ctx context.Context, root int, volume string, read func(volume, id string) (storage.Snapshot, error)) (list []storage.Snapshot, strange []string, err error) {
	look := func(v, id string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		s, err := read(v, id)
		switch {
		case err == nil:
			list = append(list, s)
		case api.Is(err, api.NotFound):
		case DeviceGone(err):
			return err
		default:
			strange = append(strange, SnapshotPath(v, id))
		}
		return nil
	}
	if volume == "" {
		err = EachTwo(root, "snapshots", look, func(path string) { strange = append(strange, path) })
		return list, strange, err
	}
	ids, err := Names(root, "snapshots/"+volume)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil, nil
	}
	for _, id := range ids {
		if err = look(volume, id); err != nil {
			break
		}
	}
	return list, strange, err
}

package docker

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/drover-data/drover/api"
)

// MinSize is the smallest size a volume can be given: below it a file system's
// own records leave no room for data.
const MinSize = 64 << 20

// CreateRequest is a wish for a volume.
type CreateRequest struct {
	Name   string            // the reference as typed
	Size   int64             // bytes; 0: no limit of its own
	Pool   string            // "" lets Drover choose
	Node   string            // "" is this host
	From   string            // reference to begin as a copy of; "" begins empty
	Labels map[string]string // from label.KEY=VALUE and labels=K=V,K=V
}

const optionHelp = "valid options are size=10G (or MiB, bytes; at least 64MiB), pool=NAME, node=NAME, from=VOLUME[@BRANCH], labels=KEY=VALUE,… and label.KEY=VALUE"

// ParseCreate reads the options of docker volume create. An unknown or
// malformed one is an error, so that nobody believes in a size that is not kept.
func ParseCreate(name string, opts map[string]string) (CreateRequest, error) {
	r := CreateRequest{Name: name}
	bad := func(option, reason string) (CreateRequest, error) {
		return CreateRequest{}, &api.Error{Kind: api.Invalid, Op: "create volume", Object: name, Reason: fmt.Sprintf("option %q %s", option, reason), Next: optionHelp}
	}
	if _, err := api.ParseRef(name); err != nil {
		return CreateRequest{}, err
	}
	label := func(k, v string) error {
		if r.Labels == nil {
			r.Labels = map[string]string{}
		}
		if old, ok := r.Labels[k]; ok && old != v {
			return fmt.Errorf("gives label %q twice", k)
		}
		r.Labels[k] = v
		return api.CheckLabels(map[string]string{k: v})
	}
	for _, key := range slices.Sorted(maps.Keys(opts)) {
		value := opts[key]
		var err error
		switch {
		case key == "size":
			r.Size, err = ParseSize(value)
		case key == "pool":
			r.Pool, err = value, api.CheckPoolName(value)
		case key == "node":
			r.Node, err = value, api.CheckNodeName(value)
		case key == "from":
			r.From = value
			_, err = api.ParseRef(value)
		case key == "labels":
			for part := range strings.SplitSeq(value, ",") {
				k, v, ok := strings.Cut(part, "=")
				if !ok {
					return bad(key, fmt.Sprintf("has %q, which is not KEY=VALUE", part))
				}
				if err = label(k, v); err != nil {
					break
				}
			}
		case strings.HasPrefix(key, "label."):
			err = label(strings.TrimPrefix(key, "label."), value)
		default:
			return bad(key, "is unknown")
		}
		if err != nil {
			return bad(key, "is not valid: "+err.Error())
		}
	}
	return r, nil
}

// ParseSize reads a size: digits and a unit, as in 10G, 512MiB, 1.5T or
// 1073741824. K, M, G, T and P are powers of 1024 with or without i and B, as
// lvcreate and qemu-img read them: nobody gets less than he thinks.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "kKmMgGtTpPiIbB")
	unit := strings.ToUpper(s[len(digits):])
	factor := 1.0
	if unit != "" && unit != "B" {
		i := strings.IndexByte("KMGTP", unit[0])
		if i < 0 || !slices.Contains([]string{"", "B", "I", "IB"}, unit[1:]) {
			return 0, fmt.Errorf("%q has no unit K, M, G, T or P", s)
		}
		factor = math.Pow(1024, float64(i+1))
	}
	if digits == "" || strings.Trim(digits, "0123456789.") != "" || digits[0] == '.' || strings.Count(digits, ".") > 1 || strings.HasSuffix(digits, ".") {
		return 0, fmt.Errorf("%q is not a size such as 10G or 512MiB", s)
	}
	var size int64
	if n, err := strconv.ParseInt(digits, 10, 64); err == nil {
		if n > math.MaxInt64/int64(factor) {
			return 0, fmt.Errorf("%q is more than any pool has", s)
		}
		size = n * int64(factor)
	} else {
		f, err := strconv.ParseFloat(digits, 64)
		if err != nil || f*factor >= math.MaxInt64 {
			return 0, fmt.Errorf("%q is more than any pool has", s)
		}
		size = int64(f * factor)
	}
	if size < MinSize {
		return 0, fmt.Errorf("%q is less than 64MiB", s)
	}
	return size, nil
}

package layer

import (
	"fmt"
	"io"

	"github.com/drover-data/drover/tree"
	"github.com/drover-data/drover/tree/digest"
)

// Content says what a whole tree is.
type Content struct {
	Digest  digest.Sum
	Entries int64 // without the root
	Bytes   int64 // sum of files' sizes
}

// Root computes the content digest of a whole tree from its entries, and
// checks that they make a tree: every entry in a directory.
func Root(src Source) (Content, error) {
	zeros := digest.NewZeros()
	var t digest.Tree
	dirs := []string{} // open directories, the root first
	rooted := false
	for {
		e, err := src.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return Content{}, err
		}
		if e.Path == "" {
			t.Dir(&e.Entry)
			dirs = append(dirs, "")
			rooted = true
			continue
		}
		for len(dirs) > 0 && !tree.Below(e.Path, dirs[len(dirs)-1]) {
			dirs = dirs[:len(dirs)-1]
		}
		parent, _ := tree.SplitPath(e.Path)
		if len(dirs) == 0 || dirs[len(dirs)-1] != parent {
			return Content{}, damaged(fmt.Sprintf("%.200q lies in no directory", e.Path))
		}
		switch e.Kind {
		case tree.Dir:
			t.Dir(&e.Entry)
			dirs = append(dirs, e.Path)
			continue
		case tree.File:
			t.Other(&e.Entry, digest.Entry(&e.Entry, FileSum(zeros, e)))
		default:
			t.Other(&e.Entry, digest.Entry(&e.Entry, digest.Sum{}))
		}
	}
	if !rooted {
		return Content{}, damaged("it has no root")
	}
	return Content{Entries: t.Entries, Bytes: t.Bytes, Digest: t.Sum()}, nil
}

// FileSum is the digest of a file's content, from its ranges.
func FileSum(z *digest.Zeros, e *Entry) digest.Sum {
	f := digest.NewFile(z)
	next := int64(0)
	whole := e.Size / digest.RangeSize
	rest := e.Size % digest.RangeSize
	for _, s := range e.Sums {
		f.AddZeros(min(s.N, whole) - next)
		f.Add(s.Sum)
		next = s.N + 1
	}
	if next < whole {
		f.AddZeros(whole - next)
		next = whole
	}
	if rest > 0 && next == whole {
		f.Add(z.Range(rest))
	}
	return f.Sum(e.Size)
}

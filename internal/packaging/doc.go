// Package packaging holds the tests of what `make install` and `make deb`
// bring onto a host: it has no code of its own.
package packaging

// Package e2e holds the tests that need real hosts: a lab with Docker and
// Drover on each. They are behind the build tag lab; see CONTRIBUTING.md.
package e2e

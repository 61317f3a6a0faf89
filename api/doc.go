// Package api holds Drover's nouns: the resources that users, agents and
// plugins speak of, the rules for their names, references to versions of a
// volume, and the closed set of error kinds. It imports only the standard
// library and does nothing but describe: whoever wants to know what Drover is
// about reads this package first.
package api

package store

// migrations bring the database to the next version each; one that was
// released is never changed. {id} is a number that the database gives, growing.
//
// The database itself holds what must not break: a reference points to a
// manifest of its repository, a manifest's parts are in its repository, and what a
// repository has is in the table of blobs. None of them can be removed
// before what needs it.
var migrations = []string{
	`
CREATE TABLE settings (
	name TEXT PRIMARY KEY,
	value TEXT NOT NULL
);
CREATE TABLE users (
	name TEXT PRIMARY KEY,
	root INTEGER NOT NULL,
	disabled INTEGER NOT NULL,
	created BIGINT NOT NULL
);
CREATE TABLE tokens (
	id TEXT PRIMARY KEY,
	owner TEXT NOT NULL REFERENCES users(name) ON DELETE CASCADE,
	label TEXT NOT NULL,
	hash TEXT NOT NULL UNIQUE,
	most INTEGER NOT NULL,
	created BIGINT NOT NULL,
	expires BIGINT NOT NULL,
	used BIGINT NOT NULL
);
CREATE INDEX tokens_owner ON tokens(owner);
CREATE TABLE namespaces (
	name TEXT PRIMARY KEY,
	owner TEXT REFERENCES users(name) ON DELETE SET NULL,
	quota BIGINT NOT NULL,
	used BIGINT NOT NULL,
	created BIGINT NOT NULL
);
CREATE INDEX namespaces_owner ON namespaces(owner);
CREATE TABLE members (
	namespace TEXT NOT NULL REFERENCES namespaces(name) ON DELETE CASCADE,
	member TEXT NOT NULL REFERENCES users(name) ON DELETE CASCADE,
	rights INTEGER NOT NULL,
	PRIMARY KEY (namespace, member)
);
CREATE INDEX members_member ON members(member);
CREATE TABLE repositories (
	id {id},
	name TEXT NOT NULL UNIQUE,
	namespace TEXT NOT NULL REFERENCES namespaces(name),
	public INTEGER NOT NULL,
	forked TEXT NOT NULL,
	quota BIGINT NOT NULL,
	used BIGINT NOT NULL,
	protected TEXT NOT NULL,
	keep TEXT NOT NULL,
	created BIGINT NOT NULL,
	pushed BIGINT NOT NULL
);
CREATE INDEX repositories_namespace ON repositories(namespace);
CREATE TABLE grants (
	repository BIGINT NOT NULL REFERENCES repositories(id) ON DELETE CASCADE,
	member TEXT NOT NULL REFERENCES users(name) ON DELETE CASCADE,
	rights INTEGER NOT NULL,
	PRIMARY KEY (repository, member)
);
CREATE INDEX grants_member ON grants(member);
CREATE TABLE blobs (
	digest TEXT PRIMARY KEY,
	size BIGINT NOT NULL,
	state INTEGER NOT NULL
);
CREATE INDEX blobs_state ON blobs(state) WHERE state <> 0;
CREATE TABLE repo_blobs (
	repository BIGINT NOT NULL REFERENCES repositories(id),
	digest TEXT NOT NULL REFERENCES blobs(digest),
	size BIGINT NOT NULL,
	seen BIGINT NOT NULL,
	present INTEGER NOT NULL,
	linked INTEGER NOT NULL,
	PRIMARY KEY (repository, digest)
);
CREATE INDEX repo_blobs_digest ON repo_blobs(digest);
CREATE INDEX repo_blobs_seen ON repo_blobs(repository, seen);
CREATE TABLE commits (
	repository BIGINT NOT NULL REFERENCES repositories(id),
	id TEXT NOT NULL,
	time BIGINT NOT NULL,
	PRIMARY KEY (repository, id)
);
CREATE TABLE commit_parents (
	repository BIGINT NOT NULL,
	id TEXT NOT NULL,
	place INTEGER NOT NULL,
	parent TEXT NOT NULL,
	PRIMARY KEY (repository, id, place),
	FOREIGN KEY (repository, id) REFERENCES commits(repository, id)
);
CREATE TABLE manifests (
	repository BIGINT NOT NULL REFERENCES repositories(id),
	digest TEXT NOT NULL REFERENCES blobs(digest),
	media TEXT NOT NULL,
	size BIGINT NOT NULL,
	artifact TEXT NOT NULL,
	annotations TEXT NOT NULL,
	subject TEXT NOT NULL,
	commit_id TEXT NOT NULL,
	seen BIGINT NOT NULL,
	present INTEGER NOT NULL,
	PRIMARY KEY (repository, digest)
);
CREATE INDEX manifests_digest ON manifests(digest);
CREATE INDEX manifests_subject ON manifests(repository, subject) WHERE subject <> '';
CREATE TABLE blob_links (
	repository BIGINT NOT NULL,
	manifest TEXT NOT NULL,
	blob TEXT NOT NULL,
	PRIMARY KEY (repository, manifest, blob),
	FOREIGN KEY (repository, manifest) REFERENCES manifests(repository, digest),
	FOREIGN KEY (repository, blob) REFERENCES repo_blobs(repository, digest)
);
CREATE INDEX blob_links_blob ON blob_links(repository, blob);
CREATE TABLE manifest_links (
	repository BIGINT NOT NULL,
	manifest TEXT NOT NULL,
	child TEXT NOT NULL,
	PRIMARY KEY (repository, manifest, child),
	FOREIGN KEY (repository, manifest) REFERENCES manifests(repository, digest),
	FOREIGN KEY (repository, child) REFERENCES manifests(repository, digest)
);
CREATE INDEX manifest_links_child ON manifest_links(repository, child);
CREATE TABLE refs (
	repository BIGINT NOT NULL REFERENCES repositories(id),
	name TEXT NOT NULL,
	digest TEXT NOT NULL,
	time BIGINT NOT NULL,
	PRIMARY KEY (repository, name),
	FOREIGN KEY (repository, digest) REFERENCES manifests(repository, digest)
);
CREATE INDEX refs_digest ON refs(repository, digest);
CREATE TABLE mirror (
	repository TEXT NOT NULL,
	name TEXT NOT NULL,
	turn BIGINT NOT NULL,
	PRIMARY KEY (repository, name)
);
CREATE TABLE uploads (
	id TEXT PRIMARY KEY,
	repository TEXT NOT NULL,
	begun BIGINT NOT NULL,
	seen BIGINT NOT NULL
);
CREATE INDEX uploads_seen ON uploads(seen);
CREATE TABLE events (
	id {id},
	time BIGINT NOT NULL,
	kind TEXT NOT NULL,
	repository TEXT NOT NULL,
	actor TEXT NOT NULL,
	token TEXT NOT NULL,
	details TEXT NOT NULL
);
CREATE INDEX events_repository ON events(repository, id);
CREATE TABLE webhooks (
	id {id},
	repository BIGINT NOT NULL REFERENCES repositories(id) ON DELETE CASCADE,
	url TEXT NOT NULL,
	secret TEXT NOT NULL,
	kinds TEXT NOT NULL,
	disabled INTEGER NOT NULL,
	created BIGINT NOT NULL
);
CREATE INDEX webhooks_repository ON webhooks(repository);
CREATE TABLE outbox (
	id {id},
	webhook BIGINT NOT NULL REFERENCES webhooks(id) ON DELETE CASCADE,
	event BIGINT NOT NULL REFERENCES events(id) ON DELETE CASCADE,
	due BIGINT NOT NULL,
	tries INTEGER NOT NULL
);
CREATE INDEX outbox_due ON outbox(due);
CREATE INDEX outbox_webhook ON outbox(webhook);
CREATE INDEX outbox_event ON outbox(event);
CREATE TABLE sweep (
	id INTEGER PRIMARY KEY,
	begun BIGINT NOT NULL,
	ended BIGINT NOT NULL,
	figures TEXT NOT NULL
);
INSERT INTO sweep (id, begun, ended, figures) VALUES (1, 0, 0, '{}');
`,
	`
ALTER TABLE outbox ADD COLUMN ended BIGINT NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN said TEXT NOT NULL DEFAULT '';
`,
}

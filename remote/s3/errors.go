package s3

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"

	"github.com/minio/minio-go/v7"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

// code is what the endpoint calls its refusal.
func code(err error) string {
	var e minio.ErrorResponse
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// fail makes an *api.Error of what went wrong with an object.
func (s *Store) fail(ctx context.Context, op, object string, err error) error {
	if err == nil {
		return nil
	}
	var known *api.Error
	if errors.As(err, &known) {
		return err
	}
	if ended := remote.Ended(ctx, op, object); ended != nil {
		return ended
	}
	e := &api.Error{Kind: api.Unavailable, Op: op, Object: object, Reason: s.url + " does not answer", Err: err, Next: "see whether the endpoint can be reached"}
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var answer minio.ErrorResponse
	switch {
	case errors.As(err, &unknown), errors.As(err, &host):
		e.Reason, e.Next = "the endpoint's certificate is not trusted", "add its authority to the host's certificates"
	case errors.As(err, &answer):
		e.Reason = s.url + " answered " + answer.Code
		s.explain(e, answer)
	}
	return e
}

// explain says what an endpoint's refusal means.
func (s *Store) explain(e *api.Error, a minio.ErrorResponse) {
	set := func(kind api.Kind, reason, next string) {
		e.Kind, e.Reason, e.Next = kind, reason, next
	}
	switch a.Code {
	case "NoSuchKey", "NotFound", "NoSuchVersion":
		set(api.NotFound, s.url+" does not have it", "")
		e.Err = nil
		return
	case "NoSuchBucket":
		set(api.Unavailable, "there is no bucket "+s.o.Bucket, "make it, or check the name and the endpoint")
		return
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId", "AuthFailure", "XAdminUserNotFound":
		set(api.Unauthenticated, "the endpoint does not know the access key, or the secret is another one", "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile")
		return
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken":
		set(api.Unauthenticated, "the session token has expired, or is not valid", "log in again and give the new token")
		return
	case "RequestTimeTooSkewed", "RequestExpired":
		set(api.Unauthenticated, "this host's clock and the endpoint's differ too much", "set the clock")
		return
	case "AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden":
		set(api.Denied, "the key does not have the right", "it needs s3:ListBucket on the bucket, s3:GetObject, s3:PutObject and s3:DeleteObject below "+s.url)
		if v, err := s.core.GetCreds(); err == nil && v.AccessKeyID == "" {
			set(api.Unauthenticated, "no credentials were found, and nobody in particular has no right", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
		}
		return
	case "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "AuthorizationQueryParametersError":
		set(api.Invalid, "the bucket is in another region", "give it: …?region=…")
		return
	case "QuotaExceeded", "InsufficientStorage", "NoSpaceLeftOnDevice", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "EntityTooLarge":
		set(api.Exhausted, "it is full", "make room there, or raise its limit")
		return
	case "SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "TooManyRequests", "RequestLimitExceeded", "ThrottlingException":
		set(api.Exhausted, "it limits the rate of requests, and did so after several tries", "try again later")
		return
	case "MethodNotAllowed":
		set(api.ReadOnly, "it does not accept writes", "")
		return
	}
	switch a.StatusCode {
	case http.StatusUnauthorized:
		set(api.Unauthenticated, "the endpoint does not know the caller", "check the access key")
	case http.StatusForbidden:
		set(api.Denied, "the key does not have the right", "")
	case http.StatusTooManyRequests:
		set(api.Exhausted, "it limits the rate of requests", "try again later")
	case http.StatusInsufficientStorage:
		set(api.Exhausted, "it is full", "make room there, or raise its limit")
	}
}

// Package apierror is where error kinds become HTTP status codes, for every API that
// Drover serves. It knows no routes.
package apierror

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/drover-data/drover/api"
)

// httpStatus is where error kinds become HTTP status codes, and only here.
var httpStatus = map[api.Kind]int{
	api.Invalid: http.StatusBadRequest, api.NotFound: http.StatusNotFound, api.Exists: http.StatusConflict,
	api.Conflict: http.StatusConflict, api.InUse: http.StatusConflict, api.Unknown: http.StatusServiceUnavailable,
	api.Unavailable: http.StatusServiceUnavailable, api.Exhausted: http.StatusInsufficientStorage,
	api.ReadOnly: http.StatusInsufficientStorage, api.Denied: http.StatusForbidden, api.Unauthenticated: http.StatusUnauthorized,
	api.Unsupported: http.StatusUnprocessableEntity, api.Damaged: http.StatusUnprocessableEntity,
	api.Canceled: http.StatusConflict, api.Internal: http.StatusInternalServerError,
}

// statusError is an error as huma writes it: the api.Error with its status.
type statusError struct {
	cause  *api.Error
	status int
}

func (e *statusError) Error() string { return e.cause.Error() }
func (e *statusError) Unwrap() error { return e.cause }

func (e *statusError) GetStatus() int { return e.status }

// MarshalJSON writes the error with its causes, which are for people.
func (e *statusError) MarshalJSON() ([]byte, error) { return json.Marshal(flatten(e.cause)) }

// flatten puts the text of the cause into the reason: causes do not travel.
func flatten(e *api.Error) api.Error {
	out := *e
	if e.Err != nil {
		if out.Reason != "" {
			out.Reason += ": "
		}
		out.Reason += e.Err.Error()
		out.Err = nil
	}
	return out
}

// Of gives an error its status.
func Of(err error) huma.StatusError {
	var e *api.Error
	if !errors.As(err, &e) {
		e = &api.Error{Kind: api.Internal, Reason: err.Error()}
	}
	status, ok := httpStatus[e.Kind]
	if !ok {
		status = http.StatusInternalServerError
	}
	return &statusError{e, status}
}

// Write answers with an error.
func Write(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(Of(err).GetStatus())
	Encode(w, err)
}

// Encode writes an error whose status was written already.
func Encode(w io.Writer, err error) {
	_ = json.NewEncoder(w).Encode(Of(err)) // the client is gone if this fails
}

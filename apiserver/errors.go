package apiserver

import (
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/drover-data/drover/internal/apierror"
)

func statusOf(err error) huma.StatusError { return apierror.Of(err) }

func writeError(w http.ResponseWriter, err error) { apierror.Write(w, err) }

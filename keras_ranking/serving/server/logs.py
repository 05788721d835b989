"""Log lines as JSON, one object per line."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

CALL = "keras_ranking.serving.calls"
"""Logger with one line per call, with the fields `protocol`, `code`, `signature`, `version`, `rows` and `seconds`."""

_FIELDS = ("protocol", "code", "signature", "version", "rows", "seconds", "model")


class JsonFormatter(logging.Formatter):
    """`logging.Formatter` that writes `time` (UTC, ISO 8601), `level`, `logger`, `message`, the fields of a call, and `error` with
    the traceback if there is one.

    Example:
        >>> import logging
        >>> handler = logging.StreamHandler()
        >>> handler.setFormatter(JsonFormatter())
    """

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object without line breaks."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {field: getattr(record, field) for field in _FIELDS if hasattr(record, field)}
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)

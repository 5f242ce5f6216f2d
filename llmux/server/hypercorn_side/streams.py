"""An HTTP/2 connection on which a stream error ends only that stream."""

from __future__ import annotations

from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, StreamReset
from h2.exceptions import InvalidBodyLengthError, ProtocolError
from hpack.exceptions import HPACKError
from hyperframe.frame import DataFrame, Frame, HeadersFrame


class StreamErrorConnection(H2Connection):
    """Resets a stream in cases where h2 ends the connection, as RFC 9113 requires.

    The cases are malformed requests (section 8.1.1): an invalid Content-Length, a body that is
    longer or shorter than its Content-Length, trailers that do not end the stream; and streams over
    the limit (section 5.1.2), which a client may open before it has read the limit.
    """

    @property
    def open_inbound_streams(self) -> int:
        """Open streams, capped below the limit, so that h2 never refuses one itself."""
        return min(super().open_inbound_streams, self.local_settings.max_concurrent_streams - 1)

    @property
    def has_too_many(self) -> bool:
        """True if more streams are open than the limit allows."""
        return super().open_inbound_streams > self.local_settings.max_concurrent_streams

    def _receive_frame(self, frame: Frame) -> list[Event]:
        try:
            return super()._receive_frame(frame)
        except ProtocolError as error:
            if not _is_of_stream(frame, error):
                raise
        if isinstance(frame, DataFrame):  # or unread data would use up the connection's window
            self.acknowledge_received_data(frame.flow_controlled_length, frame.stream_id)
        self.reset_stream(frame.stream_id, ErrorCodes.PROTOCOL_ERROR)
        reset = StreamReset(stream_id=frame.stream_id)
        reset.error_code, reset.remote_reset = ErrorCodes.PROTOCOL_ERROR, False
        return [reset]


def _is_of_stream(frame: Frame, error: ProtocolError) -> bool:
    """Return whether h2 could decode the frame and objects to its content only."""
    if isinstance(error, InvalidBodyLengthError):
        return True
    # Headers that cannot be decoded are a connection error: they leave HPACK's table out of step,
    # so no later headers can be decoded either. So are subclasses of ProtocolError, which concern
    # other streams or the connection.
    is_decoded = not isinstance(error.__cause__, HPACKError)
    return isinstance(frame, HeadersFrame) and type(error) is ProtocolError and is_decoded

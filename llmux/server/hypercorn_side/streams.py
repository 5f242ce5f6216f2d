"""An HTTP/2 connection on which the error of one stream ends that stream only."""

from __future__ import annotations

from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, StreamReset
from h2.exceptions import InvalidBodyLengthError, ProtocolError
from hpack.exceptions import HPACKError
from hyperframe.frame import DataFrame, Frame, HeadersFrame


class StreamErrorConnection(H2Connection):
    """Resets the stream where RFC 9113 calls for it and h2 ends the connection.

    That is for malformed requests (section 8.1.1): a length that is none, a body that is longer or
    shorter than it says, trailers that do not end the stream; and for a stream too many
    (section 5.1.2), of which a client may open some before it has read the limit.
    """

    @property
    def open_inbound_streams(self) -> int:
        """Open streams, capped below the limit: h2 only asks whether there is room for one more."""
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
        if isinstance(frame, DataFrame):  # unread data counts as read, or the window would fill
            self.acknowledge_received_data(frame.flow_controlled_length, frame.stream_id)
        self.reset_stream(frame.stream_id, ErrorCodes.PROTOCOL_ERROR)
        reset = StreamReset(stream_id=frame.stream_id)
        reset.error_code, reset.remote_reset = ErrorCodes.PROTOCOL_ERROR, False
        return [reset]


def _is_of_stream(frame: Frame, error: ProtocolError) -> bool:
    """Return whether h2 could decode the frame and objects to its content only."""
    if isinstance(error, InvalidBodyLengthError):
        return True
    # Not what names another stream, nor headers that cannot be decoded: behind those, none can be.
    is_decoded = not isinstance(error.__cause__, HPACKError)
    return isinstance(frame, HeadersFrame) and type(error) is ProtocolError and is_decoded

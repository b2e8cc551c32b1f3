"""Events: named places where callbacks are bound, fired once or many times.

* :class:`Event` fires any number of times and calls its callbacks synchronously.
* :class:`OneTime` fires once; it can be awaited, and bound after it has fired.
* :class:`EventHandler` owns events by name and creates each when it is first asked for, so that
  an object whose events nobody uses holds none.

Nothing here knows of protocols, pools or sockets.
"""

from pulsar_client.events.event import Callback, Event
from pulsar_client.events.event_handler import EventHandler
from pulsar_client.events.one_time import OneTime

__all__ = ["Callback", "Event", "EventHandler", "OneTime"]

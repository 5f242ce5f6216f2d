"""llmux under faults and hostile clients for as long as you like: `python -m bench.soak`.

A real llmux with real hooks that start and stop real processes, each a model server that crashes,
hangs, refuses and lies at random; good clients of all sorts, hostile clients beside them, operators
that force switches, pin, cancel and reload, and now and then a SIGKILL for llmux itself. What the
contract promises is checked all the time:

- The servers and hooks check that a group has one model awake, that its wake and sleep hooks do not
  overlap, and that no request is inside of a model whose sleep hook was started. Requests that are
  cut (a drain over its time, a model found down) or whose client has left are closed before that
  hook starts, so one that is still connected then is a violation; there are no exceptions. They
  also check that no smuggled request, no target that is not normal, and no second model name
  reaches them.
- The good clients check that each request ends in time and once: with the whole answer of the right
  model, an error of the contract's table, or a cut; and that each error and cut has a cause: a
  fault that was injected into that model then, an order of an operator, or a drain over its time.
- Meanwhile cheap requests are timed, drains are held against their deadline, and the memory of
  llmux against what its config allows.
- At the end nothing waits, the counts of llmux are those of the clients, no descriptor has leaked,
  memory has not grown, the log holds no traceback, and no process is left.

What clients and faults do follows from the seed; when they meet does not.
"""

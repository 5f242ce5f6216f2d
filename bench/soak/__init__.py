"""Run llmux under faults and hostile clients, for minutes or hours: `python -m bench.soak`.

A real llmux runs real hooks, which start and stop real processes: model servers that crash, hang,
refuse and lie at random. Good clients of all kinds send requests beside hostile ones, operators
force switches, pin, cancel and reload, and llmux itself is killed (SIGKILL) now and then. The
promises of docs/guarantees.md are checked all the time:

- Servers and hooks check that a group has one model awake, that its wake and sleep hooks do not
  overlap, and that no request is inside a model whose sleep hook has started. llmux closes requests
  that it cuts (a drain over its time, a model found down) or whose client has left before that hook
  starts, so a request that is still connected then is always a violation. Servers also check that
  no smuggled request, no target that is not normalized, and no second model name reaches them.
- With `--shared`, several models of a group are awake, as far as two resources suffice. Servers
  check that what all of them hold is no more than there is, and hooks that none overlap on a
  resource. Some models need something asleep, and have a stop hook; reloads change needs and
  amounts.
- Good clients check that each request ends in time and once: with the whole response of the right
  model, a documented error, or a cut; and that each error and cut has a cause: a fault injected
  into that model at the time, an operator's order, or a drain over its time.
- Meanwhile cheap requests are timed, drains are compared with their deadline, and llmux's memory
  with the bound that its config implies.
- At the end no request waits, llmux's counts match those of the clients, no descriptor has leaked,
  memory has not grown, the log contains no traceback, and no process is left.

The seed decides the acts of clients and faults, but not their timing relative to each other.
"""

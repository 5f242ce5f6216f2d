/**
 * The control API's types; `llmux/observe/schemas.py` describes every field.
 *
 * @typedef {"asleep" | "waking" | "awake" | "draining" | "sleeping" | "failed"} ModelState
 * @typedef {"reading" | "waiting" | "forwarding" | "answering" | "ended"} RequestPhase
 * @typedef {{at: number, model: string, state: ModelState, left: ModelState}} PhaseChange
 * @typedef {{id: number, group: string, from: string | null, to: string, started: number,
 *   ended: number | null, result: "success" | "failure" | "abandoned" | null, reason: string,
 *   rule: string, request: string | null, waiting: number, expected_secs: number | null,
 *   drain_secs: number, hook_secs: number, error: string | null, evicts?: string[]}} SwitchRecord
 * @typedef {{model: string, hook: string, started: number, duration_secs: number | null,
 *   ok: boolean | null, error: string | null, output: string}} HookRun
 * @typedef {{at: number, models: Record<string, [number, number]>}} Counts
 * @typedef {{id: string, model: string, phase: RequestPhase, arrived: number, waited_secs: number,
 *   client: string | null, method: string, path: string, bytes_in: number, bytes_out: number,
 *   ended?: number | null, status?: number | null, first_byte_secs?: number | null,
 *   tokens_in?: number | null, tokens_out?: number | null,
 *   tokens_per_sec?: number | null}} RequestInfo
 * @typedef {{model: string, wait: boolean}} Pin
 * @typedef {{group: string, state: ModelState, since: number, in_flight: number, queued: number,
 *   awake: boolean, oldest_wait_secs: number | null, last_error: string | null,
 *   retry_in_secs: number | null, cost_secs: number | null, eta_secs: number | null,
 *   aliases: string[], backend: string, max_in_flight: number | null,
 *   idle_sleep_secs: number | null, hooks: string[], failing?: boolean, failed_wakes?: number,
 *   alive_trouble?: {failures: number, limit: number, error: string} | null,
 *   tokens_per_sec?: number, kept?: boolean, stopped?: boolean,
 *   needs?: Record<string, number> | null, needs_asleep?: Record<string, number> | null,
 *   needs_waking?: Record<string, number> | null}} ModelStatus
 * @typedef {"awake" | "waking" | "falling" | "asleep"} Holding
 * @typedef {{resource: string, amount: number, free: number,
 *   held: {model: string, bytes: number, as: Holding}[],
 *   promised: {model: string, bytes: number, evicts: string[]}[]}} ResourceMemory
 * @typedef {{state: "idle" | "active" | "switching", since: number, active_model: string | null,
 *   models: string[], pinned: Pin | null, switch: SwitchRecord | null, standby: string | null,
 *   stays?: string | null, awake_models?: string[], switches?: SwitchRecord[], pins?: Pin[],
 *   memory?: ResourceMemory[]}} GroupStatus
 * @typedef {{index: number, name: string, memory_used_bytes: number | null,
 *   memory_total_bytes: number | null, utilization: number | null}} Gpu
 * @typedef {{at: number, version: string, boot: string, started: number, mode: "auto" | "manual",
 *   cordoned?: boolean, policy: string, groups: Record<string, GroupStatus>, models: Record<string, ModelStatus>,
 *   estimated_costs: Record<string, Record<string, number>>, gpus: Gpu[]}} Status
 * @typedef {{started: number, ended: number | null}} Run
 * @typedef {{at: number, last_event_id: string, runs: Run[], phases: PhaseChange[],
 *   switches: SwitchRecord[], hooks: HookRun[], counts: Counts[]}} History
 */
export {};

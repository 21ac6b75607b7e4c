import type { FanOut } from "../define/fan-out.ts";
import type { StreamDefinition } from "../define/stream.ts";
import { type Duration, toMs } from "../duration.ts";
import { SortieError } from "../errors.ts";
import { assertLoggedIn, type Connection, disconnect as closeAtOnce } from "../nats/connection.ts";
import { connectMs } from "./budget.ts";
import { startClock } from "./clock.ts";
import { isLate, type OnMore, openContinuation } from "./continuation.ts";
import { createGate } from "./gate.ts";
import type { Binding } from "./handler.ts";
import { openLedger } from "./ledger.ts";
import type { Place } from "./places.ts";
import type { InvocationEvent, InvocationReport } from "./report.ts";
import { createRounds } from "./rounds.ts";
import { runConsumer } from "./run.ts";

/**
 * What an invocation does when nothing is left to pull: `"drain"` leaves, `"until-budget"` waits for more as long as its
 * time lasts, a duration waits that long for more.
 */
export type Linger = "drain" | "until-budget" | Duration;

export interface InvocationOptions {
  readonly streams: readonly StreamDefinition[];
  readonly bindings: readonly Binding[];
  /** Opens the connection that this invocation uses, within `ms`; or brings one that is open already. */
  connect(ms: number): Promise<Connection>;
  /** Lets go of it; with `onMore` it must be closed by that. @default closes it, without waiting */
  disconnect?(connection: Connection): void;
  /** When the invocation must be over, in epoch milliseconds. */
  readonly deadline: number;
  /** @default "drain" */
  readonly linger?: Linger;
  /** How many handlers run at the same time over all consumers. @default as many as these allow */
  readonly concurrency?: number;
  /** The most messages that it pulls, in equal shares for its consumers; what is left is for others. @default any number */
  readonly messages?: number;
  /** Where it runs, for the story of what fails. @default "unknown" */
  readonly host?: string;
  /** Called where there is more to do: starts other invocations that go on. It takes `fanOut`. @default nobody goes on */
  readonly onMore?: OnMore | undefined;
  /** How far invocations may fan out, as the app says. */
  readonly fanOut?: FanOut | undefined;
  /** What `onMore` was given for this invocation; it is given back, or on. @default none, as for one that a trigger starts */
  readonly place?: Place | undefined;
  /** Has it leave before its deadline: what has not been started is handed back, what has is finished. @default it stays */
  readonly leave?: AbortSignal | undefined;
  /** Told of every message that did not simply succeed. */
  log(event: InvocationEvent): void;
  /** The clock. @default Date.now */
  now?: () => number;
}

/**
 * One sortie: connects, runs every consumer side by side, and is gone before its deadline.
 * @throws SortieError `connection-failed`. What goes wrong later is in the report.
 */
export async function invoke({
  streams,
  bindings,
  connect,
  disconnect = closeAtOnce,
  deadline,
  linger = "drain",
  concurrency = Infinity,
  messages = Infinity,
  host = "unknown",
  onMore,
  fanOut,
  place,
  leave,
  log,
  now = Date.now,
}: InvocationOptions): Promise<InvocationReport> {
  const started = now();
  if (Number.isNaN(deadline))
    throw new SortieError("invalid-option", "Expected an invocation's deadline in epoch milliseconds, got NaN");
  const stayMs = lingerMs(linger);
  if (place && isLate(place, deadline, started))
    return { ms: 0, consumers: [], continued: { asked: 0, error: "It was started too late for its place" } };
  const continuation = openContinuation({ onMore, fanOut, place, started, deadline, now });
  const consumeBy = continuation?.consumeBy ?? deadline;
  const connection = await connect(connectMs(started, consumeBy));
  const clock = startClock(consumeBy, now);
  leave?.addEventListener("abort", clock.leave);
  if (leave?.aborted) clock.leave();
  let report: InvocationReport;
  try {
    const ledger = openLedger(connection);
    const left = continuation?.left;
    const tell = (event: InvocationEvent) => {
      try {
        log(event);
      } catch {} // who listens is not to harm the messages
    };
    const shared = {
      connection,
      streams,
      clock,
      ledger,
      gate: createGate(now, concurrency),
      rounds: createRounds(now),
      host,
      lingerMs: stayMs,
      messages: Math.max(1, Math.floor(messages / Math.max(1, bindings.length))),
      left,
      log: tell,
    };
    const consumers = await Promise.all(bindings.map((binding) => runConsumer(binding, shared)));
    if (consumers.every(({ ended, pulled }) => ended === "failed" && pulled === 0)) await assertLoggedIn(connection);
    report = { ms: now() - started, consumers };
    if (continuation) await continuation.decide(connection, clock, report);
  } finally {
    clock.end();
    leave?.removeEventListener("abort", clock.leave);
    disconnect(connection);
  }
  if (continuation) await continuation.start(connection, clock, report);
  return report;
}

/** How long to wait for more, in milliseconds. Throws `invalid-option` for a malformed duration. */
export function lingerMs(linger: Linger): number {
  if (linger === "drain") return 0;
  return linger === "until-budget" ? Infinity : toMs(linger, "linger");
}

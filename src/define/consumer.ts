import { type Duration, toMs } from "../duration.ts";
import { SortieError } from "../errors.ts";
import { assertCounts } from "./count.ts";
import type { Filtered, Message, MessageOf } from "./message.ts";
import { assertRetryPolicy, exponential, type RetryPolicy } from "./retry.ts";
import type { StreamDefinition, Subjects } from "./stream.ts";
import { assertName, assertPattern, covers, isLiteral } from "./subject.ts";

/** The filters that let something through. */
type Valid<S extends Subjects, Filter extends string> = Filter extends string
  ? [Filtered<S, Filter>] extends [never]
    ? never
    : Filter
  : never;

/** Nothing to add where every filter is valid; else what `filter` should have been. */
type OnlyValid<S extends Subjects, Filter extends string> = [Filter] extends [Valid<S, Filter>]
  ? unknown
  : { filter: Valid<S, Filter> | readonly Valid<S, Filter>[] };

export interface ConsumerOptions<Filter extends string, M = Message> {
  /** The subjects to receive, of those that the stream declares; wildcards allowed. @default all of them */
  filter?: Filter | readonly Filter[];
  /** How many handlers run at the same time within one invocation, be it with one message or with a batch. @default 16 */
  concurrency?: number;
  /**
   * Where an invocation has fewer places than its consumers want (`concurrency` of `serve`), a message of the consumer with
   * the highest priority is started first; among equals that of the one with the fewest handlers running. @default 0
   */
  priority?: number;
  /** The most messages that one invocation has in hand at the same time, those that wait for a handler included. @default 256 */
  batch?: number;
  /** The most bytes that it has in hand; one message may always be as large as the server takes. @default 16 MiB */
  maxBytes?: number;
  /**
   * `"together"`: acknowledgements leave together, and the server's answer to the last confirms them all; `"each"`: it
   * answers each one. @default "together"
   */
  confirm?: "together" | "each";
  /** @default five attempts, `exponential("1s", { max: "5m" })` */
  retry?: RetryPolicy;
  /** The subject for messages that failed for good; a stream must capture it. */
  deadLetter: string;
  /** After this long without a word from its function a delivery goes to another one. @default "30s" */
  ackWait?: Duration;
  /**
   * How many deliveries may be unsettled over all invocations; -1 for any number. Retries that are more than five seconds
   * off do not count. @default -1, or the server's 1000 where the consumer is not `managed`
   */
  maxAckPending?: number;
  /**
   * `false` for a consumer that someone else provisions: `sortie apply` leaves it as it is, and a message that its
   * `max_deliver` gives up on is attempted as often as the policy here says all the same. @default true
   */
  managed?: boolean;
  /**
   * Stops every invocation of the consumer, on every host, where too many handlers fail: nothing is pulled and no attempt is
   * burnt while it is open. After `openFor` one message is tried, and decides whether it closes or stays open. It costs a
   * round trip at the start of an invocation, and a small record each second.
   */
  breaker?: {
    /** Opens when this part of the handlers that ended within `window` has failed: more than 0, 1 for all of them. */
    failureRatio: number;
    /** And at least so many ended. @default 20 */
    minimum?: number;
    /** @default "1m" */
    window?: Duration;
    /** @default "30s" */
    openFor?: Duration;
    /** Whether an error tells of what the handler depends on. @default every one but a `NonRetriableError` */
    counts?(error: unknown): boolean;
  };
  /**
   * How many handlers are started in a time, over all invocations on all hosts: evenly, one after the other. A message over
   * the limit waits, or is handed back until it may be started; that is no attempt. It costs a round trip for a batch.
   */
  rateLimit?: {
    messages: number;
    per: Duration;
    /** Limits each key by itself. @default all messages together */
    key?(message: M): string;
    /** How many may be started at once after a rest; within any `per` it is no more than `messages` and `burst`. @default 1 */
    burst?: number;
  };
  /**
   * Messages with the same key are handled once: what comes again within `ttl` of being handled is acknowledged unhandled,
   * and what comes while another one is being handled waits for how that ends. It is beyond the stream's `duplicateWindow`,
   * which only knows ids of publishes. It costs a round trip for a batch, and two small records for a message.
   */
  idempotency?: {
    /** Names what is to be done once. @default its `id`, which is that of its publish, or schedule, where it has one */
    key?(message: M): string;
    /** How long a key is remembered. */
    ttl: Duration;
  };
}

/** When a circuit breaker opens, and for how long. */
export interface BreakerPolicy {
  readonly failureRatio: number;
  readonly minimum: number;
  readonly windowMs: number;
  readonly openForMs: number;
  readonly counts?: (error: unknown) => boolean;
}

/** A durable pull consumer as plain data. */
export interface ConsumerDefinition<S extends Subjects = Subjects, Filter extends string = string> {
  readonly kind: "consumer";
  readonly stream: StreamDefinition<S>;
  readonly name: string;
  readonly filters: readonly Filter[];
  readonly concurrency: number;
  readonly priority: number;
  readonly retry: RetryPolicy;
  readonly deadLetter: string;
  readonly ackWaitMs: number;
  readonly maxAckPending: number;
  readonly batch: number;
  readonly maxBytes: number;
  readonly confirm: "together" | "each";
  readonly managed: boolean;
  readonly breaker?: BreakerPolicy;
  readonly rateLimit?: {
    readonly perMs: number;
    readonly everyMs: number;
    readonly burst: number;
    readonly key?: (message: Message) => string;
  };
  readonly idempotency?: { readonly ttlMs: number; readonly key?: (message: Message) => string };
}

/**
 * Defines a consumer of a stream. `sortie apply` creates it on the server.
 * @throws SortieError `invalid-definition` for options that the server would refuse, or that would lose work.
 * @example
 * export const billing = defineConsumer(orders, "billing", { filter: "orders.placed", deadLetter: "dead.orders.billing" });
 */
export function defineConsumer<S extends Subjects, const Filter extends string = keyof S & string>(
  stream: StreamDefinition<S>,
  name: string,
  options: ConsumerOptions<Filter, MessageOf<S, Filter>> & OnlyValid<S, Filter>,
): ConsumerDefinition<S, Filter> {
  const what = `Consumer "${name}" of stream "${stream.name}"`;
  assertName(name, what);
  const filters = filtersOf(stream, options.filter, what);
  const { concurrency = 16, retry = { attempts: 5, backoff: exponential("1s", { max: "5m" }) }, deadLetter } = options;
  const { managed = true, confirm = "together", maxBytes = 16 * 1024 * 1024, priority = 0 } = options;
  const { maxAckPending = managed ? -1 : 1_000, batch = Math.max(256, concurrency) } = options;
  assertCounts({ concurrency, batch, maxBytes }, what);
  if (!Number.isFinite(priority))
    throw new SortieError("invalid-definition", `${what}: expected priority to be a number, got ${priority}`);
  assertRetryPolicy(retry, what);
  if (!["together", "each"].includes(confirm))
    throw new SortieError("invalid-definition", `${what}: expected confirm "together" or "each", got "${confirm}"`);
  if (maxAckPending !== -1) assertCounts({ maxAckPending }, what);
  if (typeof deadLetter !== "string" || !isLiteral(deadLetter)) {
    throw new SortieError(
      "invalid-definition",
      `${what}: expected deadLetter to be a subject without wildcards, got "${deadLetter}"`,
    );
  }
  if (filters.some((filter) => covers(filter, deadLetter))) {
    throw new SortieError(
      "invalid-definition",
      `${what}: its filter catches its own deadLetter subject "${deadLetter}"; use another subject or a narrower filter`,
    );
  }
  const ackWaitMs = toMs(options.ackWait ?? "30s", `${what}, ackWait`);
  if (ackWaitMs < 1_000)
    throw new SortieError("invalid-definition", `${what}: expected ackWait of a second or more, got ${ackWaitMs} ms`);
  return {
    kind: "consumer",
    stream,
    name,
    filters: filters as unknown as readonly Filter[],
    concurrency,
    priority,
    retry,
    deadLetter,
    ackWaitMs,
    maxAckPending,
    batch,
    maxBytes,
    confirm,
    managed,
    ...(options.breaker && { breaker: breakerOf(options.breaker, what) }),
    ...(options.rateLimit && { rateLimit: rateLimitOf(options.rateLimit, what) }),
    ...(options.idempotency && { idempotency: idempotencyOf(options.idempotency, ackWaitMs, what) }),
  };
}

function idempotencyOf<M>(
  { ttl, key }: NonNullable<ConsumerOptions<string, M>["idempotency"]>,
  ackWaitMs: number,
  what: string,
): NonNullable<ConsumerDefinition["idempotency"]> {
  const ttlMs = toMs(ttl, `${what}, idempotency.ttl`);
  if (ttlMs <= ackWaitMs) {
    throw new SortieError(
      "invalid-definition",
      `${what}: expected idempotency.ttl to be longer than ackWait (${ackWaitMs} ms), after which a message comes again, got ${ttlMs} ms`,
    );
  }
  return { ttlMs, ...keyOf(key, `${what}: expected idempotency.key`) };
}

function breakerOf(
  {
    failureRatio,
    minimum = 20,
    window = "1m",
    openFor = "30s",
    counts,
  }: NonNullable<ConsumerOptions<string>["breaker"]>,
  what: string,
): BreakerPolicy {
  if (!(failureRatio > 0 && failureRatio <= 1)) {
    throw new SortieError(
      "invalid-definition",
      `${what}: expected breaker.failureRatio above 0 and up to 1, got ${failureRatio}`,
    );
  }
  assertCounts({ "breaker.minimum": minimum }, what);
  const [windowMs, openForMs] = [toMs(window, `${what}, breaker.window`), toMs(openFor, `${what}, breaker.openFor`)];
  for (const [option, ms] of Object.entries({ window: windowMs, openFor: openForMs })) {
    if (ms < 100)
      throw new SortieError(
        "invalid-definition",
        `${what}: expected breaker.${option} of 100 ms or more, got ${ms} ms`,
      );
  }
  if (counts !== undefined && typeof counts !== "function")
    throw new SortieError(
      "invalid-definition",
      `${what}: expected breaker.counts to be a function, got ${typeof counts}`,
    );
  return { failureRatio, minimum, windowMs, openForMs, ...(counts && { counts }) };
}

function rateLimitOf<M>(
  { messages, per, key, burst = 1 }: NonNullable<ConsumerOptions<string, M>["rateLimit"]>,
  what: string,
): NonNullable<ConsumerDefinition["rateLimit"]> {
  assertCounts({ "rateLimit.messages": messages, "rateLimit.burst": burst }, what);
  const perMs = toMs(per, `${what}, rateLimit.per`);
  if (!(perMs >= 100)) {
    throw new SortieError(
      "invalid-definition",
      `${what}: expected rateLimit.per of 100 ms or more, which is what timers can keep to, got ${perMs} ms; for as fast a rate take a longer time and more messages`,
    );
  }
  return { perMs, everyMs: perMs / messages, burst, ...keyOf(key, `${what}: expected rateLimit.key`) };
}

function keyOf<M>(key: ((message: M) => string) | undefined, expected: string) {
  if (key === undefined) return {};
  if (typeof key === "function") return { key: key as (message: Message) => string };
  throw new SortieError("invalid-definition", `${expected} to be a function, got ${typeof key}`);
}

/** Never wider than what the stream declares, so that a consumer cannot swallow the stream's own schedules. */
function filtersOf(stream: StreamDefinition, filter: string | readonly string[] | undefined, what: string): string[] {
  const known = Object.keys(stream.schemas);
  if (filter === undefined && known.length > 0) return known;
  const filters = [filter ?? ">"].flat().flatMap((wanted) => {
    assertPattern(wanted, what);
    const declared = known.filter((subject) => covers(wanted, subject));
    if (declared.length > 0) return declared;
    if (known.some((subject) => covers(subject, wanted))) return [wanted];
    throw new SortieError(
      "invalid-definition",
      `${what}: the filter "${wanted}" matches no subject that the stream has a schema for (${known.join(", ") || "it has none"})`,
    );
  });
  return [...new Set(filters)];
}

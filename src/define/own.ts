import type { ConsumerDefinition } from "./consumer.ts";
import type { FanOut } from "./fan-out.ts";
import type { StreamDefinition } from "./stream.ts";

/**
 * Streams of Sortie's own, which `sortie apply` creates where an app needs them. They hold what is known of messages that
 * did not simply succeed, and what invocations have to agree on; while nothing fails, and nothing is to be agreed on,
 * nothing is written to them.
 */

/** How often a handler was started for a message, and what became of it. */
export const attemptsStream = "SORTIE_ATTEMPTS";

/** Which keys were handled, and which are being handled, for consumers with `idempotency`. */
export const keysStream = "SORTIE_KEYS";

/** The states of circuit breakers. */
export const breakersStream = "SORTIE_BREAKERS";

/** What is left of rate limits. */
export const ratesStream = "SORTIE_RATES";

/** Messages whose retry is far off, kept out of their consumer's `max_ack_pending`. */
export const parkedStream = "SORTIE_PARKED";

/** Which invocations may be connected at the same time, for apps with `fanOut`. */
export const placesStream = "SORTIE_PLACES";

/** What a function is to release later, and for a while what became of it. */
export const schedulesStream = "SORTIE_SCHEDULES";

/** Where that is kept: all apps of an account share it, as they share its connections. */
export const placesSubject = "sortie.places";

/** The server's word that it gave up on a message, for consumers with a `max_deliver` that is not ours. */
const exhaustedStream = "SORTIE_EXHAUSTED";

/** No platform lets a function run for longer; what one has begun and not ended by then, it never will. */
export const longestInvocationMs = 15 * 60_000;

/** Nobody is put off by a rate limit for longer at a time: it may be loosened meanwhile. */
export const longestPutOffMs = 3_600_000;

/** Retries sooner than this stay with their consumer. */
export const parkFromMs = 5_000;

/**
 * Whether a consumer's far retries are parked. Without a limit on what may be outstanding they hinder nobody, but for what a
 * busy key puts off: that may be all of a backlog, which the server would go through time and again.
 */
export function parks({ maxAckPending, rateLimit }: ConsumerDefinition): boolean {
  return maxAckPending !== -1 || rateLimit?.key !== undefined;
}

/** Where the attempts at one message are kept. */
export function attemptsSubject(stream: string, consumer: string, sequence: number | string, storedNs: string): string {
  return `sortie.attempts.${stream}.${consumer}.${sequence}.${storedNs}`;
}

/** Where a key of a consumer is kept. */
export function keySubject({ stream, name }: ConsumerDefinition, key: string): string {
  return `sortie.keys.${stream.name}.${name}.${key}`;
}

/** Where the state of a consumer's circuit breaker is kept, and told of. */
export function breakerSubject({ stream, name }: ConsumerDefinition): string {
  return `sortie.breakers.${stream.name}.${name}`;
}

/** Where a consumer's rate limit is kept; for a limit by key, a token for the key follows. */
export function rateSubject({ stream, name }: ConsumerDefinition): string {
  return `sortie.rates.${stream.name}.${name}`;
}

/** Where one message is parked; `*` for all of a consumer. */
export function parkedSubject(stream: string, consumer: string, sequence: number | string, storedNs: string): string {
  return `sortie.parked.${stream}.${consumer}.${sequence}.${storedNs}`;
}

/** Where the server says that it gave up on a message of a consumer. */
function exhaustedSubject(stream: string, consumer: string): string {
  return `$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.${stream}.${consumer}`;
}

/** The name, within a stream of ours, of the consumer that stands beside one of the app's; `~` keeps the two names apart. */
export function companionOf({ stream, name }: ConsumerDefinition): string {
  return `${stream.name}~${name}`;
}

/** Which streams of ours have a consumer beside this one, and what it is given there. */
export function companionsOf(
  consumer: ConsumerDefinition,
): { kind: "parked" | "exhausted"; stream: string; filter: string }[] {
  const { stream, name, managed } = consumer;
  const parked = { kind: "parked", stream: parkedStream, filter: parkedSubject(stream.name, name, "*", "*") } as const;
  const exhausted = {
    kind: "exhausted",
    stream: exhaustedStream,
    filter: exhaustedSubject(stream.name, name),
  } as const;
  return [...(parks(consumer) ? [parked] : []), ...(managed ? [] : [exhausted])];
}

/**
 * The streams of ours that these consumers, invocations that fan out, and schedules need; as safe in a cluster as the safest of the app's.
 */
export function ownStreams(
  consumers: readonly ConsumerDefinition[],
  { fanOut, scheduled = [] }: { fanOut?: FanOut | undefined; scheduled?: readonly StreamDefinition[] } = {},
): StreamDefinition[] {
  const replicas = Math.max(1, ...[...consumers.map(({ stream }) => stream), ...scheduled].map((one) => one.replicas));
  const base = {
    kind: "stream",
    schemas: {},
    storage: "file",
    replicas,
    maxMessages: -1,
    maxBytes: -1,
    maxMessagesPerSubject: -1,
    maxAgeMs: 0,
    duplicateWindowMs: 120_000,
    schedules: false,
    messageTtl: false,
    retention: "workqueue",
  } as const;
  const streams: StreamDefinition[] = [];
  const recordsOf = (name: string, subject: string, maxAgeMs: number): StreamDefinition => ({
    ...base,
    name,
    subjects: [subject],
    retention: "limits",
    maxMessagesPerSubject: 1,
    maxAgeMs,
  });
  // the attempts that outlive their function are what one that died left behind
  if (consumers.length > 0)
    streams.push(recordsOf(attemptsStream, attemptsSubject("*", "*", "*", "*"), 90 * 86_400_000));
  const keptMs = consumers.flatMap(({ idempotency }) => idempotency?.ttlMs ?? []);
  if (keptMs.length > 0) streams.push(recordsOf(keysStream, "sortie.keys.>", Math.max(...keptMs, longestInvocationMs)));
  if (consumers.some(({ breaker }) => breaker)) streams.push(recordsOf(breakersStream, "sortie.breakers.>", 0));
  // by then what was used is there again, and who was put off has come
  const restedMs = consumers.flatMap(({ rateLimit: rate }) =>
    rate ? Math.max(rate.perMs, rate.burst * rate.everyMs) : [],
  );
  if (restedMs.length > 0)
    streams.push(recordsOf(ratesStream, "sortie.rates.>", 2 * Math.max(...restedMs, longestPutOffMs)));
  if (fanOut) streams.push(recordsOf(placesStream, placesSubject, 2 * longestInvocationMs)); // by then all of it has lapsed
  if (scheduled.length > 0) streams.push({ ...recordsOf(schedulesStream, "sortie.schedules.>", 0), messageTtl: true });
  if (consumers.some(parks))
    streams.push({ ...base, name: parkedStream, subjects: [parkedSubject("*", "*", "*", "*")] });
  const foreign = consumers.filter(({ managed }) => !managed);
  if (foreign.length > 0) {
    const subjects = foreign.map(({ stream, name }) => exhaustedSubject(stream.name, name));
    streams.push({ ...base, name: exhaustedStream, subjects });
  }
  return streams;
}

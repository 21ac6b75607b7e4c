import { connectMs } from "../consume/budget.ts";
import type { Place } from "../consume/places.ts";
import type { ConsumerReport, InvocationReport } from "../consume/report.ts";
import { assertCounts } from "../define/count.ts";
import type { StreamDefinition } from "../define/stream.ts";
import { type Duration, toMs } from "../duration.ts";
import { SortieError, textOf } from "../errors.ts";
import type { Tokens } from "../http/access.ts";
import { assertLoggedIn, type Connection, connect, disconnect } from "../nats/connection.ts";
import type { OpenSocket } from "../nats/open.ts";
import { type ReleaseOptions, type ReleaseReport, release } from "../schedule/release.ts";

/** The settings of a deployed function, as a platform's environment holds them. */
export interface Settings {
  /**
   * The server's WebSocket URL, in which a user and password may stand (secret, then); or several, separated by commas, of
   * which one is tried after the other.
   */
  NATS_URL?: string;
  /** The contents of a `.creds` file, its line ends as they are or as `\\n`; instead of `NATS_NKEY` and `NATS_TOKEN`. Secret. */
  NATS_CREDS?: string;
  /** The seed (`SU…`) of a user that the server knows by its public key. Secret. */
  NATS_NKEY?: string;
  /** Secret. */
  NATS_TOKEN?: string;
  /**
   * What `POST /publish/{subject}` takes as its bearer token. As of each of the tokens below there may be several, with spaces
   * between; one for some subjects alone is written `orders.placed,notes.*:<token>`. Secret.
   */
  SORTIE_PUBLISH_TOKEN?: string;
  /** What `/schedules` takes as its bearer token. Secret. */
  SORTIE_SCHEDULES_TOKEN?: string;
  /** What `/run/{consumer}`, `/release` and the whole of `/health` take. Secret. */
  SORTIE_RUN_TOKEN?: string;
  /** What opens everything. Secret. */
  SORTIE_ADMIN_TOKEN?: string;
  /** What signs webhooks for literal subjects: `payments.received:whsec_<base64>`. Secret. */
  SORTIE_WEBHOOK_SECRET?: string;
  /** As `SORTIE_RUN_TOKEN`, in the name that Vercel gives it. Secret. */
  CRON_SECRET?: string;
}

/** Who is let in over HTTP. */
export function tokensIn(settings: Settings): Tokens {
  return {
    publish: settings.SORTIE_PUBLISH_TOKEN,
    schedules: settings.SORTIE_SCHEDULES_TOKEN,
    run: settings.SORTIE_RUN_TOKEN,
    admin: settings.SORTIE_ADMIN_TOKEN,
    webhooks: settings.SORTIE_WEBHOOK_SECRET,
    cron: settings.CRON_SECRET,
  };
}

/** Connects as the settings say. Throws `not-configured` where they do not say where to. */
export function connectWith(
  { NATS_URL, NATS_CREDS, NATS_NKEY, NATS_TOKEN }: Settings,
  ms: number,
  how: { open?: OpenSocket; name?: string } = {},
): Promise<Connection> {
  if (!NATS_URL) {
    throw new SortieError(
      "not-configured",
      "NATS_URL is not set: expected the WebSocket URL of the server, such as wss://nats.example.com:443",
    );
  }
  return connect({ url: NATS_URL, creds: NATS_CREDS, nkey: NATS_NKEY, token: NATS_TOKEN, ...how }, ms);
}

/**
 * One scheduler invocation over a connection that it opens and lets go of. Logs what it did, where it did anything.
 * @throws SortieError `invocation-failed` for streams whose schedules could not all be released; what connecting
 * throws.
 */
export async function releaseOver(
  connect: (ms: number) => Promise<Connection>,
  definitions: readonly StreamDefinition[],
  options: ReleaseOptions,
): Promise<ReleaseReport> {
  const connection = await connect(connectMs(Date.now(), options.deadline));
  let report: ReleaseReport;
  let failed: string[];
  try {
    report = await release(connection, definitions, options);
    failed = report.streams.flatMap(({ stream, error }) =>
      error ? [`Schedules of stream "${stream}": ${error}`] : [],
    );
    if (failed.length > 0) await assertLoggedIn(connection);
  } finally {
    disconnect(connection);
  }
  const releasedAny = report.streams.some(({ released = 0 }) => released > 0);
  if (releasedAny || failed.length > 0) logJson({ event: "release", ...report });
  if (failed.length > 0) throw new SortieError("invocation-failed", failed.join("\n"));
  return report;
}

/** Milliseconds of an invocation's budget. Throws `invalid-option` for one in which nothing could be done. */
export function budgetOf(budget: Duration): number {
  const ms = toMs(budget, "budget");
  if (ms >= 1_000) return ms;
  throw new SortieError("invalid-option", `budget: expected a second or more, got ${ms} ms`);
}

/** Throws `invalid-definition` for a number of handlers that no invocation could run; Infinity is as many as there are. */
export function assertConcurrency(concurrency = Infinity): void {
  if (concurrency !== Infinity) assertCounts({ concurrency }, "serve");
}

/** One line of JSON, which both platforms' logs take apart. */
export function logJson(entry: object): void {
  console.log(JSON.stringify(entry));
}

/**
 * Logs what an invocation did, where it did anything, and hands its report on.
 * @throws SortieError `invocation-failed` for consumers that failed, so that the platform counts the invocation as failed;
 * what the invocation itself throws is logged and passed on.
 */
export async function reported(invocation: Promise<InvocationReport>): Promise<InvocationReport> {
  const report = await invocation.catch((error: unknown) => {
    logJson({ event: "failed", error: textOf(error) });
    throw error;
  });
  const eventful = ({ pulled, ended }: ConsumerReport) => pulled > 0 || ended !== "drained";
  if (report.consumers.some(eventful) || report.continued?.error) logJson({ event: "invocation", ...report });
  const failed = report.consumers.flatMap(({ error, stream, consumer, unconfirmed }) => [
    ...(error ? [error] : []),
    ...(unconfirmed > 0
      ? [
          `Consumer "${consumer}" of stream "${stream}": the server confirmed ${unconfirmed} settlements too late or not at all; these messages come again`,
        ]
      : []),
  ]);
  if (failed.length > 0) throw new SortieError("invocation-failed", failed.join("\n"));
  return report;
}

/** The place in what an invocation is started with; undefined for anything else, such as a schedule's event. */
export function placeIn(event: unknown): Place | undefined {
  if (typeof event !== "object" || event === null || !("id" in event) || !("until" in event)) return undefined;
  const { id, until } = event;
  return typeof id === "string" && typeof until === "number" ? { id, until } : undefined;
}

/**
 * As `reported`, for an invocation that another one asked for: what failed is in the log, and not told to the platform,
 * which would start it again with a place that is given back.
 */
export async function reportedOnce(invocation: Promise<InvocationReport>): Promise<InvocationReport> {
  const report = reported(invocation);
  return report.catch(() => invocation).catch(() => ({ ms: 0, consumers: [] }));
}

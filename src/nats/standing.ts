import { SortieError, textOf } from "../errors.ts";
import { assertLoggedIn, type Connection, disconnect } from "./connection.ts";
import { longestMs, pause, retryMs, within } from "./within.ts";

/** A connection that is kept open for those to come. */
export interface Standing {
  /**
   * The connection, opened where it is not.
   * @throws SortieError `connection-failed` within `ms`.
   */
  use(ms: number): Promise<Connection>;
  /** Whether it is still there, which a silent one may not be: one that does not answer is let go. */
  probe(connection: Connection): Promise<void>;
  /** Throws `connection-failed` where the server has refused the log-in after all, and lets the connection go. */
  assertLoggedIn(connection: Connection): Promise<void>;
}

export interface StandingOptions {
  connect(ms: number): Promise<Connection>;
  /** Whether somebody has it in use. */
  isBusy(): boolean;
  /** How long it is kept while nobody uses it. */
  readonly idleMs: number;
  /** Is told why a connection could not be opened. */
  onFailed?(error: unknown): void;
}

/** Less than who waits for it has: it is to be told why there is none. */
const connectMs = 4_000;
const probeMs = 2_000;
const pausesMs = [100, 5_000] as const;
const busyMs = 100; // how soon to see again whether one is used that is not to be kept at all

/**
 * Keeps one connection. One that was lost is opened anew by who wants it next, not before a pause of a random length, which
 * grows while that fails: all who lost theirs with a server are not back at the same moment.
 */
export function standingConnection({ connect, isBusy, onFailed, ...keeping }: StandingOptions): Standing {
  const idleMs = Math.min(keeping.idleMs, longestMs);
  let open: Connection | undefined;
  let opening: Promise<Connection> | undefined;
  let failures = 0;
  let failed: unknown; // the last one, as long as there is no connection
  let notBefore = 0;
  let usedAt = 0;
  let probing: Promise<void> | undefined;

  async function dial(): Promise<Connection> {
    try {
      await pause(notBefore - Date.now(), "waiting to connect again");
      const until = Date.now() + connectMs;
      const connection = await connect(connectMs);
      try {
        await within(until - Date.now(), "logging in", connection.confirmed ?? Promise.resolve());
        if (!connection.info) throw new SortieError("connection-failed", "NATS has closed the connection again");
      } catch (error) {
        disconnect(connection);
        throw error;
      }
      failures = 0;
      failed = undefined;
      open = connection;
      void connection.closed().then(() => left(connection));
      setTimeout(rest, idleMs, connection);
      return connection;
    } catch (error) {
      failures += 1;
      failed = error;
      onFailed?.(error);
      notBefore = Date.now() + retryMs(failures, pausesMs);
      throw error;
    } finally {
      opening = undefined;
    }
  }

  function left(connection: Connection): void {
    if (open !== connection) return;
    open = undefined;
    notBefore = Date.now() + retryMs(0, pausesMs);
  }

  function letGo(connection: Connection): void {
    left(connection);
    disconnect(connection);
  }

  function rest(connection: Connection): void {
    if (open !== connection) return;
    const leftMs = isBusy() ? Math.max(idleMs, busyMs) : usedAt + idleMs - Date.now();
    if (leftMs > 0) {
      setTimeout(rest, leftMs, connection);
      return;
    }
    open = undefined;
    disconnect(connection);
  }

  return {
    async use(ms) {
      usedAt = Date.now();
      if (open?.info) return open; // it has none when it is closed, which is told a little later
      opening ??= dial();
      opening.catch(() => {}); // whoever waits is told
      try {
        return await within(ms, "connecting to NATS", opening);
      } catch (error) {
        if (error instanceof SortieError && error.code !== "timed-out") throw error;
        const why = failed ? `: ${textOf(failed)}` : "";
        throw new SortieError("connection-failed", `NATS could not be reached within ${Math.round(ms)} ms${why}`, {
          cause: failed ?? error,
        });
      }
    },
    async probe(connection) {
      const { rtt } = connection as Connection & { rtt?(): Promise<number> };
      if (!rtt || open !== connection) return;
      const told = Promise.race([rtt.call(connection), connection.closed()]); // the client's does not end with it
      probing ??= within(probeMs, "probing the connection", told).then(
        () => {},
        () => letGo(connection),
      );
      await probing;
      probing = undefined;
    },
    async assertLoggedIn(connection) {
      try {
        await assertLoggedIn(connection);
      } catch (error) {
        letGo(connection);
        throw error;
      }
    },
  };
}

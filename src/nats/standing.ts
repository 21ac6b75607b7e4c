import { SortieError } from "../errors.ts";
import { type Connection, disconnect } from "./connection.ts";
import { pause, within } from "./within.ts";

/** A connection that is kept open for those to come. */
export interface Standing {
  /**
   * The connection, opened where it is not.
   * @throws SortieError `connection-failed` within `ms`.
   */
  use(ms: number): Promise<Connection>;
  /** Whether it is still there, which a silent one may not be: one that does not answer is let go. */
  probe(connection: Connection): Promise<void>;
}

export interface StandingOptions {
  connect(ms: number): Promise<Connection>;
  /** Whether somebody has it in use. */
  isBusy(): boolean;
  /** How long it is kept while nobody uses it. */
  readonly idleMs: number;
}

const connectMs = 5_000;
const probeMs = 2_000;
const longestPauseMs = 5_000;

/**
 * Keeps one connection. One that was lost is opened anew by who wants it next, not before a pause of a random length, which
 * grows while that fails: all who lost theirs with a server are not back at the same moment.
 */
export function standingConnection({ connect, isBusy, idleMs }: StandingOptions): Standing {
  let open: Connection | undefined;
  let opening: Promise<Connection> | undefined;
  let failures = 0;
  let notBefore = 0;
  let usedAt = 0;
  let probing: Promise<void> | undefined;

  async function dial(): Promise<Connection> {
    try {
      await pause(notBefore - Date.now(), "waiting to connect again");
      const connection = await connect(connectMs);
      try {
        await within(connectMs, "logging in", connection.confirmed ?? Promise.resolve());
      } catch (error) {
        disconnect(connection);
        throw error;
      }
      failures = 0;
      open = connection;
      void connection.closed().then(() => left(connection));
      setTimeout(rest, idleMs, connection);
      return connection;
    } catch (error) {
      failures += 1;
      notBefore = Date.now() + jittered(Math.min(100 * 2 ** failures, longestPauseMs));
      throw error;
    } finally {
      opening = undefined;
    }
  }

  function left(connection: Connection): void {
    if (open !== connection) return;
    open = undefined;
    notBefore = Date.now() + jittered(100);
  }

  function rest(connection: Connection): void {
    if (open !== connection) return;
    const leftMs = isBusy() ? idleMs : usedAt + idleMs - Date.now();
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
      if (open) return open;
      opening ??= dial();
      opening.catch(() => {}); // whoever waits is told
      try {
        return await within(ms, "connecting to NATS", opening);
      } catch (error) {
        if (error instanceof SortieError && error.code !== "timed-out") throw error;
        throw new SortieError("connection-failed", `NATS could not be reached within ${Math.round(ms)} ms`, {
          cause: error,
        });
      }
    },
    async probe(connection) {
      const { rtt } = connection as Connection & { rtt?(): Promise<number> };
      if (!rtt || open !== connection) return;
      probing ??= within(probeMs, "probing the connection", rtt.call(connection)).then(
        () => {},
        () => {
          left(connection);
          disconnect(connection);
        },
      );
      await probing;
      probing = undefined;
    },
  };
}

function jittered(ms: number): number {
  return ms * (0.5 + Math.random() / 2);
}

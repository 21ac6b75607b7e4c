import type { Connection } from "./connection.ts";
import { isNoResponders, isTimeout } from "./jetstream.ts";
import { pause, within } from "./within.ts";

const pauseMs = 100;

/** How long to wait for the word of a cluster that may have no leader itself. */
const lookMs = 1_000;

interface Asking {
  /** For so long at most. */
  readonly ms: number;
  /**
   * Where asking twice does no harm: how long to wait for an answer before asking again, longer each time. What the old
   * leader was asked is lost with it.
   */
  readonly repeatMs?: number | undefined;
  /** Whether there is something that could get a leader; undefined where nobody says. @default there is */
  isThere?(leftMs: number): Promise<boolean | undefined>;
}

/**
 * Asks, and asks again while nobody listens, as while a stream or consumer has no leader.
 * @throws what the last `ask` threw.
 */
export async function untilLed<T>(
  { ms, repeatMs = Infinity, isThere = async () => true }: Asking,
  ask: (ms: number) => Promise<T>,
): Promise<T> {
  const until = Date.now() + ms;
  const leftMs = () => until - Date.now();
  let known = false;
  for (let patienceMs = repeatMs; ; ) {
    try {
      return await ask(Math.min(patienceMs, leftMs()));
    } catch (error) {
      if (leftMs() <= pauseMs) throw error;
      if (isTimeout(error)) {
        patienceMs *= 2; // it may as well be a server that is slow
        continue;
      }
      if (!isNoResponders(error)) throw error;
      const found: boolean | undefined = known || (await isThere(Math.min(lookMs, leftMs())));
      if (found === false || leftMs() <= 0) throw error;
      known = found === true;
    }
    await pause(Math.min(pauseMs, leftMs()), "waiting for a leader");
  }
}

/** Whether a stream captures a subject, be it led or not; undefined where nobody says. */
export async function isCaptured(connection: Connection, subject: string, ms: number): Promise<boolean | undefined> {
  try {
    const payload = JSON.stringify({ subject });
    const asked = connection.request("$JS.API.STREAM.NAMES", payload, { timeout: Math.max(1, ms) });
    const answer = await within(ms, "looking for a stream", asked);
    const { error, streams } = answer.json<{ error?: object; streams?: string[] | null }>();
    return error ? undefined : (streams ?? []).length > 0;
  } catch {
    return undefined;
  }
}

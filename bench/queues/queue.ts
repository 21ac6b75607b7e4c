import { numberOf } from "../order.ts";

/** A job queue with a server of its own, started for the bench and gone with it. */
export interface Queue extends AsyncDisposable {
  readonly name: string;
  /** What it runs on, and how what it stores is made safe. */
  readonly server: string;
  /** How it takes jobs: what its documentation recommends where they are many and short. */
  readonly settings: string;
  /** How many of the jobs that the others get it can do in a run that is not much longer than theirs. @default 1 */
  readonly share?: number;
  /** Inserts jobs that wait. */
  fill(count: number): Promise<void>;
  /** Handles that many with a handler that does nothing; answers when the server has taken note of the last one. */
  drain(count: number): Promise<void>;
}

/** A queue whose jobs may be for later. */
export interface Delaying extends Pick<Queue, "name" | "server">, AsyncDisposable {
  readonly later: Later;
}

/** How jobs wait for their time. */
interface Later {
  /** What its documentation recommends where they are not to be late. */
  readonly settings: string;
  /** Inserts a job for each of these times, in epoch milliseconds, while workers run; answers how late each was, in milliseconds. */
  lateness(due: readonly number[]): Promise<number[]>;
}

/** Throws where jobs were inserted when the first one was due already: then it is not their queue that was late. */
export function assertAhead(due: readonly number[]): void {
  const lateMs = Date.now() - Math.min(...due);
  if (lateMs > 0) throw new Error(`${due.length} jobs were inserted ${Math.round(lateMs)} ms after the first was due`);
}

/** Hears of each job as its handler starts. */
export function starts(due: readonly number[]): { heard(data: unknown): void; all(): Promise<number[]> } {
  const late = new Map<number, number>();
  const { promise, resolve, reject } = Promise.withResolvers<number[]>();
  return {
    heard(data) {
      const n = numberOf(data);
      if (!late.has(n)) late.set(n, Date.now() - (due[n] ?? Number.NaN));
      if (late.size === due.length) resolve([...late.values()]);
    },
    async all() {
      const tooLate = () =>
        reject(new Error(`${due.length - late.size} of ${due.length} jobs were not handled in time`));
      const timer = setTimeout(tooLate, Math.max(...due) - Date.now() + 60_000);
      return promise.finally(() => clearTimeout(timer));
    },
  };
}

/** Runs `insert` for a thousand jobs at a time. */
export async function byThousands(
  count: number,
  insert: (from: number, to: number) => Promise<unknown>,
): Promise<void> {
  for (let from = 0; from < count; from += 1_000) await insert(from, Math.min(count, from + 1_000));
}

export function range<T>(from: number, to: number, of: (n: number) => T): T[] {
  return Array.from({ length: to - from }, (_, at) => of(from + at));
}

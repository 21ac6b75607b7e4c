import { orderAt } from "../order.ts";
import { startPostgres } from "../servers.ts";
import { assertAhead, byThousands, type Delaying, type Queue, range, starts } from "./queue.ts";

const pollMs = 10;

/**
 * As its documentation measures itself, completing jobs in batches; or as it recommends a local queue, and completes
 * jobs unless told otherwise, each by itself.
 */
export async function startGraphileWorker(how: "in batches" | "each by itself"): Promise<Queue & Delaying> {
  const [concurrentJobs, size, delay] = how === "in batches" ? [24, 500, 0] : [100, 101, -1];
  process.env.NO_LOG_SUCCESS ??= "1"; // or each job is a line, silent as the logger is; read when it is imported
  const { Logger, makeWorkerUtils, run, runOnce } = await import("graphile-worker");
  await using starting = new AsyncDisposableStack();
  const postgres = starting.use(await startPostgres());
  const connectionString = `postgresql:///postgres?host=${encodeURIComponent(postgres.socket)}&user=bench`;
  const logger = new Logger(() => () => {});
  const utils = await makeWorkerUtils({ connectionString, logger });
  starting.defer(() => utils.release());
  await utils.migrate();
  const running = starting.move();
  const batched = { localQueue: { size }, completeJobBatchDelay: delay, failJobBatchDelay: delay };
  return {
    name: `graphile-worker, ${how}`,
    server: `PostgreSQL ${postgres.version}, fsync on, synchronous_commit on`,
    settings: `concurrentJobs ${concurrentJobs}, localQueue ${size}, completed ${how}`,
    fill: (count) =>
      byThousands(count, (from, to) =>
        utils.addJobs(range(from, to, (n) => ({ identifier: "order", payload: orderAt(n) }))),
      ),
    async drain(count) {
      let handled = 0;
      const order = () => {
        handled += 1;
      };
      const worker = { connectionString, concurrentJobs, maxPoolSize: 25, ...batched };
      await runOnce({ logger, taskList: { order }, preset: { worker } });
      if (handled !== count) throw new Error(`graphile-worker handled ${handled} jobs of ${count}`);
    },
    later: {
      settings: `run_at, pollInterval ${pollMs} ms (it documents no minimum), concurrentJobs ${concurrentJobs}, localQueue ${size}`,
      async lateness(due) {
        const { heard, all } = starts(due);
        const worker = { connectionString, concurrentJobs, maxPoolSize: 25, pollInterval: pollMs, ...batched };
        const runner = await run({ logger, taskList: { order: heard }, preset: { worker } });
        await byThousands(due.length, (from, to) =>
          utils.addJobs(
            range(from, to, (n) => ({ identifier: "order", payload: orderAt(n), runAt: new Date(due[n] ?? 0) })),
          ),
        );
        try {
          assertAhead(due);
          return await all();
        } finally {
          await runner.stop();
        }
      },
    },
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  };
}

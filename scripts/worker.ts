import { fileURLToPath } from "node:url";
import { Miniflare } from "miniflare";
import { unstable_getMiniflareWorkerOptions, unstable_readConfig } from "wrangler";

const configPath = fileURLToPath(new URL("../wrangler.toml", import.meta.url));
const scriptPath = fileURLToPath(new URL("../build/worker/worker.js", import.meta.url));

/** The deployable Worker in real workerd. */
export interface LocalWorker extends AsyncDisposable {
  readonly url: URL;
  /** The cron triggers of wrangler.toml. */
  readonly crons: readonly string[];
  /** Fires one, as Cloudflare would at its time; answers when the invocation is over. */
  fire(cron: string): Promise<{ outcome: string }>;
}

/** Starts the bundle that `wrangler deploy --dry-run` made, configured by wrangler.toml with the given bindings on top. */
export async function startWorker(options: {
  bindings: Record<string, string>;
  /** The bundle itself. @default the sample's */
  script?: string;
  /** Queues that it sends to by a binding each, and takes one message at a time from. @default none */
  queues?: Record<string, string>;
  /** Classes of Durable Objects, by their bindings. @default none */
  durableObjects?: Record<string, string>;
  /** @default a free one */
  port?: number;
  onLog?: (line: string) => void;
}): Promise<LocalWorker> {
  const config = unstable_readConfig({ config: configPath });
  // secrets are given as bindings: wrangler would look for them here, and say that they are missing
  const { workerOptions } = unstable_getMiniflareWorkerOptions({ ...config, secrets: undefined });
  const { queues = {} } = options;
  const oneByOne = { maxBatchSize: 1, maxBatchTimeout: 0 };
  const miniflare = new Miniflare({
    ...workerOptions,
    name: config.name ?? "worker",
    modules: true,
    ...(options.script === undefined ? { scriptPath } : { script: options.script }),
    bindings: { ...workerOptions.bindings, ...options.bindings },
    queueProducers: queues,
    queueConsumers: Object.fromEntries(Object.values(queues).map((queue) => [queue, oneByOne])),
    durableObjects: Object.fromEntries(
      Object.entries(options.durableObjects ?? {}).map(([binding, className]) => [
        binding,
        { className, useSQLite: true },
      ]),
    ),
    host: "127.0.0.1",
    port: options.port ?? 0,
    cf: false,
    unsafeTriggerHandlers: true, // /cdn-cgi/handler/scheduled, as in `wrangler dev`
    structuredWorkerdLogs: true,
    handleStructuredLogs: ({ message }: { message: string }) => void options.onLog?.(message),
  });
  const url = await miniflare.ready;
  return {
    url,
    crons: config.triggers.crons ?? [],
    async fire(cron) {
      const response = await fetch(
        new URL(`/cdn-cgi/handler/scheduled?${new URLSearchParams({ cron, format: "json" })}`, url),
      );
      return (await response.json()) as { outcome: string };
    },
    [Symbol.asyncDispose]: () => miniflare.dispose(),
  };
}

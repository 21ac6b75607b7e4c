import { notUpgraded } from "./failure.ts";

/**
 * Opens a WebSocket; an abort of `gone` lets go of it at once, whatever the peer does. What the runtime says of why it
 * breaks, and would not say of the socket, goes to `broke`.
 */
export type OpenSocket = (
  url: string,
  gone: AbortSignal,
  broke: (why: unknown) => void,
) => WebSocket | Promise<WebSocket>;

/** What sends the requests below Node's `fetch` and WebSocket (undici). */
interface Dispatcher {
  dispatch(options: object, handler: Handler): boolean;
}

/** What it tells of one request. Both are missing in a runtime, or a release, that does it otherwise. */
interface Handler {
  onConnect?(...args: unknown[]): unknown;
  onUpgrade?(status: number, headers: unknown, socket: { destroy(): void }): unknown;
  onHeaders?(status: number, ...more: unknown[]): unknown;
  onError?(error: unknown): unknown;
}

/**
 * A WebSocket of the runtime. Node's tells neither why it did not open, nor does it let go of the connection where a peer
 * does not answer its close; what it stands on does both, where it takes a `dispatcher`. Others know nothing of that option.
 */
export const openSocket: OpenSocket = (url, gone, broke) => {
  const { WebSocket } = globalThis; // with which Node loads what it stands on
  let letGo = () => {};
  const dispatcher: Dispatcher = {
    dispatch(options, handler) {
      const { onConnect, onUpgrade, onHeaders, onError } = handler;
      if (onConnect) {
        handler.onConnect = function (...args) {
          onSending((socket) => {
            letGo = () => socket.destroy(new Error("let go"));
          });
          return onConnect.apply(this, args);
        };
      }
      if (onUpgrade) {
        handler.onUpgrade = function (status, headers, socket) {
          letGo = () => socket.destroy();
          if (gone.aborted) letGo();
          return onUpgrade.call(this, status, headers, socket);
        };
      }
      if (onHeaders) {
        handler.onHeaders = function (status, ...more) {
          broke(notUpgraded(status));
          return onHeaders.call(this, status, ...more);
        };
      }
      if (onError) {
        handler.onError = function (error) {
          broke(error);
          return onError.call(this, error);
        };
      }
      return below()?.dispatch(options, handler) ?? false;
    },
  };
  const socket = below()
    ? new WebSocket(url, { dispatcher } as unknown as string[]) // an option of Node's that no standard has
    : new WebSocket(url);
  gone.addEventListener("abort", () => {
    if (socket.readyState === 0) letGo(); // before the request is aborted: undici would dial again for it
    socket.close();
    letGo();
  });
  return socket;
};

/** Calls with what the request goes out over that is sent right after: Node tells that of none before it is answered. */
function onSending(take: (socket: { destroy(why: Error): void }) => void): void {
  const { process } = globalThis as { process?: Partial<NodeJS.Process> };
  const sending = process?.getBuiltinModule?.("node:diagnostics_channel").channel("undici:client:sendHeaders");
  const told = (message: unknown) => {
    sending?.unsubscribe(told); // the next one may be somebody else's
    take((message as { socket: Parameters<typeof take>[0] }).socket);
  };
  sending?.subscribe(told);
  queueMicrotask(() => sending?.unsubscribe(told));
}

function below(): Dispatcher | undefined {
  return (globalThis as { [key: symbol]: Dispatcher | undefined })[Symbol.for("undici.globalDispatcher.1")];
}

// What the hub uses of workerd's built-in module; an app has all of its types from `wrangler types`.
declare module "cloudflare:workers" {
  export abstract class DurableObject<Env = unknown> {
    protected readonly ctx: { abort(reason?: string): void };
    protected readonly env: Env;
    constructor(ctx: object, env: Env);
  }
  export abstract class RpcTarget {
    protected readonly isRpcTarget: true;
  }
}

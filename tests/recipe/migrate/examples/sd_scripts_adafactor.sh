accelerate launch --num_cpu_threads_per_process=8 "./sdxl_train_network.py" --config_file="" \
  --pretrained_model_name_or_path=./noobaiXL.safetensors --v_parameterization --zero_terminal_snr \
  --train_data_dir=./img --reg_data_dir ./reg --resolution=1024 --enable_bucket --bucket_reso_steps=32 \
  --network_module=networks.lora --network_dim=8 --network_alpha=8 \
  --optimizer_type=adafactor --optimizer_args scale_parameter=False relative_step=False warmup_init=False \
  --learning_rate=3e-4 --lr_scheduler=constant_with_warmup --lr_warmup_steps=100 --max_grad_norm=0 \
  --text_encoder_lr 1e-5 2e-6 --train_batch_size=1 --max_train_steps=1000 --full_bf16 --mixed_precision=bf16 \
  --log_with=tensorboard --logging_dir=logs --wandb_api_key=abcdef123456 --flip_aug
